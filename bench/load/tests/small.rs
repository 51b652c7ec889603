//! Both measurements at a size that fits into every run of the tests: what is right is checked, not how long it takes.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use edgelink_load::relay::RelayArgs;
use edgelink_load::{Args, RunArgs};

/// With the binaries where `cargo build --bins` puts them.
fn run_args() -> RunArgs {
    let bin_dir = match std::env::var_os("EDGELINK_BIN_DIR") {
        Some(dir) => dir.into(),
        None => std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned(),
    };
    RunArgs { bin_dir: Some(bin_dir), timeout: 100, json: false }
}

#[test]
fn some_hundred_nodes_join_and_learn_of_a_change_and_of_nothing_else() {
    let args = Args { networks: 3, nodes: 80, changes: 2, concurrency: 16, run: run_args() };
    // Every node has every other of its network, each with its key, and none of another: else it is an error.
    let report = edgelink_load::run(&args).unwrap();
    assert_eq!(report.nodes, 240);
    assert_eq!((report.changes.len(), report.after_commit.len()), (2, 2));
    assert_eq!(report.stray_messages, 0, "a change in one network is nothing to the others");
}

#[test]
fn a_relay_serves_two_hundred_and_twenty_of_them_cost_only_themselves() {
    let args = RelayArgs {
        connections: 200,
        stalled: 20,
        senders: 50,
        payload: vec![64, 1_400],
        seconds: 1,
        stall: 2,
        rate: 32,
        concurrency: 16,
        run: run_args(),
    };
    // Every frame came unchanged to whom it was for, and no connection ended: else it is an error.
    let report = edgelink_load::relay::run(&args).unwrap();
    let stalled = report.stalled.as_ref().unwrap();
    assert_eq!((report.connections, stalled.receivers), (200, 20));
    for of in &report.forwarding {
        assert!(of.received > 0 && of.received + of.lost <= of.sent, "{of:?}");
    }
    let neighbours = stalled.beside;
    assert!(neighbours.sent > 0, "{stalled:?}");
    assert_eq!(neighbours.received, neighbours.sent, "others lose nothing: {stalled:?}");
    // Each of them: 1 MiB of queue, and what is on its way to the kernel.
    assert!(stalled.queued_peak <= 20 << 20, "{stalled:?}");
    assert!(stalled.rss_peak < stalled.rss_before + (80 << 20), "{stalled:?}");
}
