//! Whom a node believes (DESIGN §2, trust).

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use edgelink_auth::{MachineKey, MachinePublic};
use edgelink_model::{NetworkId, NodeId};
use edgelink_session::trust::{Pin, PinStore, Refusal, Trust};
use std::net::IpAddr;

const NETWORK: NetworkId = NetworkId(7);
const ALICE: NodeId = NodeId(1);
const BOB: NodeId = NodeId(2);

fn machine(seed: u8) -> MachinePublic {
    MachineKey::from_seed([seed; 32]).public()
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 1, last])
}

fn check(pins: &mut PinStore, node: NodeId, seed: u8, addresses: &[IpAddr]) -> Result<(), Refusal> {
    pins.check_config(NETWORK, node, &machine(seed), addresses)
}

fn with_alice(trust: Trust) -> PinStore {
    let mut pins = PinStore::import(trust, []);
    check(&mut pins, ALICE, 1, &[ip(1)]).unwrap();
    pins
}

#[test]
fn the_first_key_is_kept_and_a_changed_one_refused_until_accepted() {
    let mut pins = with_alice(Trust::Tofu);
    let refusal =
        Refusal::MachineKeyChanged { node: ALICE, pinned: machine(1).fingerprint(), offered: machine(9).fingerprint() };
    assert_eq!(check(&mut pins, ALICE, 9, &[ip(1)]), Err(refusal.clone()));
    assert_eq!(pins.refusals().collect::<Vec<_>>(), [(NETWORK, ALICE, &refusal)]);
    assert_eq!(check(&mut pins, ALICE, 1, &[ip(1)]), Ok(()), "the old key is still believed");
    assert_eq!(pins.refusals().count(), 0, "and the controller has come to its senses");

    check(&mut pins, ALICE, 9, &[ip(1)]).unwrap_err();
    assert!(pins.accept(NETWORK, ALICE));
    assert!(!pins.accept(NETWORK, ALICE), "once");
    assert_eq!(check(&mut pins, ALICE, 9, &[ip(1)]), Ok(()));
    assert!(check(&mut pins, ALICE, 1, &[ip(1)]).is_err());
}

#[test]
fn an_address_does_not_move_to_another_machine_until_accepted() {
    let mut pins = with_alice(Trust::Tofu);
    let refusal = Refusal::AddressMoved { node: BOB, address: ip(1), owner: ALICE, pinned: machine(1).fingerprint() };
    assert_eq!(check(&mut pins, BOB, 2, &[ip(2), ip(1)]), Err(refusal));
    assert_eq!(pins.pin(NETWORK, BOB), None, "nothing of it is believed");
    assert!(pins.accept(NETWORK, BOB));
    assert_eq!(pins.pin(NETWORK, BOB).unwrap().addresses, [ip(2), ip(1)]);
    assert!(pins.pin(NETWORK, ALICE).unwrap().addresses.is_empty());
    // Now it is Bob's, and Alice cannot have it back either.
    assert!(matches!(check(&mut pins, ALICE, 1, &[ip(1)]), Err(Refusal::AddressMoved { owner: BOB, .. })));
    assert_eq!(check(&mut pins, ALICE, 1, &[ip(5)]), Ok(()));
}

#[test]
fn a_machine_may_get_other_addresses_and_another_node_id() {
    let mut pins = with_alice(Trust::Tofu);
    assert_eq!(check(&mut pins, ALICE, 1, &[ip(3)]), Ok(()));
    assert_eq!(check(&mut pins, BOB, 2, &[ip(1)]), Ok(()), "the old one is free");
    // The same machine, enrolled anew, keeps its address under another id.
    assert_eq!(check(&mut pins, NodeId(3), 2, &[ip(1)]), Ok(()));
}

#[test]
fn networks_do_not_know_each_other() {
    let mut pins = with_alice(Trust::Tofu);
    assert_eq!(pins.check_config(NetworkId(8), ALICE, &machine(9), &[ip(1)]), Ok(()));
    assert_eq!(check(&mut pins, ALICE, 1, &[ip(1)]), Ok(()));
}

#[test]
fn announces_must_match_a_pin_and_never_make_one() {
    for trust in [Trust::Tofu, Trust::Controller] {
        let pins = with_alice(trust);
        assert_eq!(pins.check_announce(NETWORK, ALICE, &machine(1)), Ok(()));
        assert!(matches!(pins.check_announce(NETWORK, ALICE, &machine(9)), Err(Refusal::MachineKeyChanged { .. })));
        assert_eq!(pins.check_announce(NETWORK, BOB, &machine(2)), Err(Refusal::NotPinned { node: BOB }));
        assert_eq!(pins.check_announce(NetworkId(8), ALICE, &machine(1)), Err(Refusal::NotPinned { node: ALICE }));
    }
}

#[test]
fn the_controller_mode_believes_the_controller() {
    let mut pins = with_alice(Trust::Controller);
    assert_eq!(check(&mut pins, ALICE, 9, &[ip(1)]), Ok(()));
    assert_eq!(check(&mut pins, BOB, 2, &[ip(1)]), Ok(()));
    assert_eq!(pins.check_announce(NETWORK, ALICE, &machine(9)), Ok(()));
    assert!(pins.check_announce(NETWORK, ALICE, &machine(1)).is_err());
}

#[test]
fn the_list_mode_takes_nobody_else() {
    let mut pins = PinStore::import(Trust::Pinned(vec![machine(1).fingerprint(), machine(3).fingerprint()]), []);
    assert_eq!(check(&mut pins, ALICE, 1, &[ip(1)]), Ok(()));
    let refusal = Refusal::NotListed { node: BOB, offered: machine(2).fingerprint() };
    assert_eq!(check(&mut pins, BOB, 2, &[ip(2)]), Err(refusal));
    assert!(!pins.accept(NETWORK, BOB), "the list is edited, not overruled");
    assert!(
        matches!(check(&mut pins, ALICE, 3, &[ip(1)]), Err(Refusal::MachineKeyChanged { .. })),
        "listed, but not Alice"
    );
    // A list that was shortened holds for pins of old, too.
    let shortened = PinStore::import(Trust::Pinned(vec![]), pins.export());
    assert!(matches!(shortened.check_announce(NETWORK, ALICE, &machine(1)), Err(Refusal::NotListed { .. })));
}

#[test]
fn pins_survive_being_stored() {
    let mut pins = with_alice(Trust::Tofu);
    check(&mut pins, BOB, 2, &[ip(2), "fd00::2".parse().unwrap()]).unwrap();
    let stored = pins.export();
    assert_eq!(
        stored,
        [
            Pin { network_id: NETWORK, node_id: ALICE, machine_pub: machine(1), addresses: vec![ip(1)] },
            Pin {
                network_id: NETWORK,
                node_id: BOB,
                machine_pub: machine(2),
                addresses: vec![ip(2), "fd00::2".parse().unwrap()]
            },
        ]
    );
    let mut back = PinStore::import(Trust::Tofu, stored);
    assert!(check(&mut back, ALICE, 9, &[ip(1)]).is_err());
    assert!(check(&mut back, NodeId(3), 3, &["fd00::2".parse().unwrap()]).is_err());
}
