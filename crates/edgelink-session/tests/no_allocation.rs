//! The data path allocates nothing: not for sealing, not for opening, not for refusing (DESIGN §6).

mod common;

use common::{Side, epoch};
use edgelink_model::NodeId;
use edgelink_wire::{Flags, FrameType, data};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: forwards to the system's allocator, whose contract is the same.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(run: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    run();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn a_packet_costs_no_allocation() {
    let now = epoch();
    let (mut a, mut b) = (Side::new(NodeId(1), now), Side::new(NodeId(2), now));
    a.table.set_peer(b.table.local_statement().unwrap(), now).unwrap();
    b.table.set_peer(a.table.local_statement().unwrap(), now).unwrap();
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![0u8; 10]))), 1, "the count counts");

    let mut frames = vec![[0u8; data::OVERHEAD + 1_400]; 1_000];
    let sealed = allocations(|| {
        for batch in frames.chunks_mut(50) {
            let mut sealer = a.table.sealer(NodeId(2)).unwrap();
            for frame in batch {
                sealer.seal(FrameType::Data, Flags::NONE, frame).unwrap();
            }
        }
    });
    assert_eq!(sealed, 0);
    let mut again = frames.clone();
    let opened = allocations(|| {
        for frame in &mut frames {
            b.table.open(frame, now).unwrap();
        }
        for frame in &mut again {
            b.table.open(frame, now).unwrap_err();
        }
    });
    assert_eq!(opened, 0);
}
