//! What the tests of the testbed share.
#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use edgelink_testbed::{Isolation, Lab, LabOptions, Tool};

pub(crate) const SOON: Duration = Duration::from_secs(10);
pub(crate) const MS: Duration = Duration::from_millis(1);

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// Runs `body` in every kind of lab that this user may have, one after the other; says plainly what was not tested.
pub(crate) fn each_kind(body: impl Fn(&Lab)) {
    let labs = [Isolation::Root, Isolation::UserNamespace].map(|isolation| lab_of(isolation).map(|lab| body(&lab)));
    assert!(labs.iter().any(Option::is_some), "no kind of lab works here");
}

/// The same with all kinds at once, for what measures no time.
pub(crate) fn each_kind_at_once(body: impl Fn(&Lab) + Sync) {
    let tested = std::thread::scope(|scope| {
        let one = |isolation| {
            scope.spawn({
                let body = &body;
                move || lab_of(isolation).map(|lab| body(&lab))
            })
        };
        let both = [Isolation::Root, Isolation::UserNamespace].map(one);
        both.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    assert!(tested.iter().any(Option::is_some), "no kind of lab works here");
}

/// Measures again, up to five times in all, as long as `once` finds fault: a machine that does something else delays packets
/// and overflows queues, now and then. What a link itself does wrong, it does each time.
pub(crate) fn measured(what: &str, mut once: impl FnMut() -> Result<(), String>) {
    let mut faults = Vec::new();
    for _ in 0..5 {
        match once() {
            Ok(()) => return,
            Err(fault) => faults.push(fault),
        }
    }
    panic!("{what}, each time: {faults:#?}");
}

/// What [`measured`] takes for a fault.
pub(crate) fn fair(fine: bool, otherwise: impl std::fmt::Debug) -> Result<(), String> {
    if fine { Ok(()) } else { Err(format!("{otherwise:?}")) }
}

/// A lab as this user has it by default.
pub(crate) fn lab() -> Lab {
    Lab::with_tools(&Tool::ALL).unwrap()
}

/// A lab as users without privilege have it, where the kernel lets them.
pub(crate) fn users_lab() -> Lab {
    lab_of(Isolation::UserNamespace).unwrap_or_else(lab)
}

fn lab_of(isolation: Isolation) -> Option<Lab> {
    if isolation == Isolation::Root && !nix::unistd::geteuid().is_root() {
        eprintln!("NOT TESTED: plain namespaces, since we are not root");
        return None;
    }
    match Lab::with(&LabOptions { isolation, tools: Tool::ALL.to_vec(), ..LabOptions::default() }) {
        Ok(lab) => Some(lab),
        Err(error) if format!("{error:#}").contains("the kernel refuses") => {
            eprintln!("NOT TESTED: {error:#}");
            None
        }
        Err(error) => panic!("{error:#}"),
    }
}
