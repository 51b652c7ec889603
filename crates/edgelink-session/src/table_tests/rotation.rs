//! Keys that are replaced while traffic goes on, and how long the former ones live.

use super::*;

#[test]
fn all_four_sessions_receive() {
    let (mut a, mut b, now) = settled();
    // B holds frames of all four pairs: sealed by A under (1,1), (1,2), (2,1), (2,2).
    let mut frames = vec![a.seal(B, b"1 to 1")];
    let mut twin = Side::new(A, now);
    b.rotate(now);
    a.learn(&b, now);
    frames.push(a.seal(B, b"1 to 2"));
    // A twin of A that learns B's old statement after its own rotation seals (2,1).
    let old_b = statement(&b.machine, B, 1, 1).1;
    twin.rotate(now);
    twin.table.set_peer(&old_b, now).unwrap();
    frames.push(twin.seal(B, b"2 to 1"));
    twin.learn(&b, now);
    frames.push(twin.seal(B, b"2 to 2"));
    b.learn(&twin, now);
    for (frame, text) in frames.iter().zip(["1 to 1", "1 to 2", "2 to 1", "2 to 2"]) {
        assert_eq!(b.open(frame, now), Ok(text.as_bytes().to_vec()));
        assert_eq!(b.open(frame, now), Err(OpenError::Replayed));
    }
    assert_eq!(b.table.sessions_mut(A).len(), 4);
}

#[test]
fn a_new_key_is_used_only_once_the_peer_has_confirmed_it() {
    let (mut a, mut b, now) = settled();
    assert!(a.table.peer_confirmed(B) && b.table.peer_confirmed(A));
    a.rotate(now);
    assert!(!a.table.peer_confirmed(B));
    talk(&mut a, &mut b, now); // Under the old one: B has not heard of the new one.
    assert_eq!(b.learn(&a, now), PeerChange::Rotated);
    assert!(!b.table.peer_confirmed(A), "a peer's new statement resets confirmation");
    let mut frame = b.seal(A, b"confirms");
    let opened = a.table.open(&mut frame, now).unwrap();
    assert!(opened.newly_confirmed);
    assert!(a.table.peer_confirmed(B));
    let mut frame = b.seal(A, b"again");
    assert!(!a.table.open(&mut frame, now).unwrap().newly_confirmed);
    // From now on A uses its new key, which confirms B's statement to B.
    talk(&mut a, &mut b, now);
    assert!(b.table.peer_confirmed(A));
}

#[test]
fn a_straggler_under_the_peers_former_key_confirms_nothing() {
    let (mut a, mut b, now) = pair();
    let straggler = b.seal(A, b"before the rotation");
    b.rotate(now);
    a.learn(&b, now);
    assert_eq!(a.open(&straggler, now), Ok(b"before the rotation".to_vec()));
    assert!(!a.table.peer_confirmed(B));
}

#[test]
fn first_contact_after_a_restart_uses_our_newest() {
    let (mut a, _, now) = settled();
    a.rotate(now);
    // B restarts, and learns A's newest from the controller; A learns B's new one.
    let mut restarted = Side::new(B, now);
    restarted.seq = 5;
    restarted.rotate(now);
    restarted.learn(&a, now);
    a.learn(&restarted, now);
    talk(&mut a, &mut restarted, now);
    talk(&mut restarted, &mut a, now);
}

#[test]
fn superseded_sessions_receive_for_five_minutes_to_the_instant() {
    let (mut a, mut b, now) = settled();
    let late = [a.seal(B, b"0"), a.seal(B, b"1"), a.seal(B, b"2")];
    a.rotate(now);
    b.learn(&a, now);
    let end = now + SUPERSEDED_FOR;
    assert_eq!(b.table.poll_timeout(), Some(end));
    let just = end - Duration::from_nanos(1);
    b.table.handle_timeout(just);
    assert_eq!(b.open(&late[0], just), Ok(b"0".to_vec()));
    b.table.handle_timeout(end);
    assert_eq!(b.open(&late[1], end), Err(OpenError::UnknownKey { src: A }));
    // Our side of a rotation ends by the same rule, and a late timer does not prolong it.
    let (mut a, mut b, now) = settled();
    let late = [a.seal(B, b"0"), a.seal(B, b"1")];
    b.rotate(now);
    a.learn(&b, now);
    talk(&mut a, &mut b, now);
    let end = now + SUPERSEDED_FOR;
    assert_eq!(b.open(&late[0], end - Duration::from_nanos(1)), Ok(b"0".to_vec()));
    assert_eq!(b.open(&late[1], end), Err(OpenError::UnknownKey { src: A }));
    assert_eq!(b.open(&late[0], end), Err(OpenError::UnknownKey { src: A }), "not even as a replay");
}

/// Only A sends, and nothing that B says arrives any more: A cannot know that B has learnt its new key.
#[test]
fn a_one_way_flow_survives_a_rotation_that_is_never_confirmed() {
    for heard_after in [0, 1, 30, 299] {
        let (mut a, mut b, start) = settled();
        a.rotate(start);
        for second in 0..1_000 {
            let now = start + Duration::from_secs(second);
            if second == heard_after {
                b.learn(&a, now);
            }
            a.table.handle_timeout(now);
            b.table.handle_timeout(now);
            talk(&mut a, &mut b, now);
        }
    }
}

#[test]
fn our_previous_key_goes_five_minutes_after_everyone_has_confirmed_the_new_one() {
    let (mut a, mut b, now) = settled();
    let mut c = Side::new(NodeId(201), now);
    a.learn(&c, now);
    c.learn(&a, now);
    let straggler = b.seal(A, b"late");
    a.rotate(now);
    b.learn(&a, now);
    talk(&mut b, &mut a, now);
    let later = now + Duration::from_secs(1_000);
    a.table.handle_timeout(later);
    assert!(a.table.has_previous_key(), "one peer has not confirmed");
    assert_eq!(a.open(&straggler, later), Err(OpenError::UnknownKey { src: B }), "and brings no key back");
    assert_eq!(a.table.sessions_mut(B).iter().filter(|s| s.has_keys()).count(), 1, "with B it is over nevertheless");
    c.learn(&a, later);
    talk(&mut c, &mut a, later);
    let end = later + SUPERSEDED_FOR;
    assert_eq!(a.table.poll_timeout(), Some(end));
    a.table.handle_timeout(end);
    assert!(!a.table.has_previous_key());
    assert_eq!((a.table.sessions_mut(B).len(), a.table.sessions_mut(c.id).len()), (1, 1));
    assert_eq!(a.table.poll_timeout(), None);
}

#[test]
fn our_previous_key_outlives_neither_its_statement_nor_the_next_rotation() {
    let (mut a, mut b, now) = settled();
    a.rotate(now + Duration::from_secs(10));
    let switch = now + Duration::from_secs(10) + SUPERSEDED_FOR;
    assert_eq!(a.table.poll_timeout(), Some(switch));
    a.table.handle_timeout(switch);
    assert_eq!(a.table.poll_timeout(), Some(now + LIFETIME));
    a.table.handle_timeout(now + LIFETIME - Duration::from_nanos(1));
    assert!(a.table.has_previous_key());
    a.table.handle_timeout(now + LIFETIME);
    assert!(!a.table.has_previous_key());
    // B never heard of the new key; A can only use it, and B tells that it does not know it.
    let frame = a.seal(B, b"lost");
    assert_eq!(b.open(&frame, now + LIFETIME), Err(OpenError::UnknownKey { src: A }));

    let (mut a, mut b, now) = settled();
    let old = b.seal(A, b"old");
    a.rotate(now);
    a.rotate(now);
    assert_eq!(a.open(&old, now), Err(OpenError::UnknownKey { src: B }));
    b.learn(&a, now);
    talk(&mut a, &mut b, now);
}

#[test]
fn a_node_without_peers_erases_its_previous_key_after_five_minutes() {
    let now = epoch();
    let mut a = Side::new(A, now);
    a.rotate(now);
    a.table.handle_timeout(now + SUPERSEDED_FOR);
    assert!(!a.table.has_previous_key());
}
