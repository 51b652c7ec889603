//! The replay window (after RFC 6479): a ring of words that is cleared as it moves, so that a step costs amortised O(1).

/// The least window that is accepted, in packets (the specification's default).
pub const MIN_WINDOW: usize = 2_048;
/// The default window.
pub const DEFAULT_WINDOW: usize = 8_192;
/// The largest window, for when two paths of different delay are in use.
pub const MAX_WINDOW: usize = 65_536;

const WORD: u64 = u64::BITS as u64;

/// Which counters were received, among the newest `size`. Takes `size` / 8 + 8 bytes.
pub(crate) struct ReplayWindow {
    /// One word more than the window has, so that clearing whole words never clears a part of it.
    words: Box<[u64]>,
    size: u64,
    /// One above the highest counter received; 0 before the first.
    next: u64,
    /// Counters below are refused: a resize has forgotten them.
    floor: u64,
}

/// Why a counter is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It was received before.
    Seen,
    /// It lies below the window.
    TooOld,
}

impl ReplayWindow {
    /// An empty window; `size` is clamped to what is allowed and rounded up to whole words.
    pub(crate) fn new(size: usize) -> Self {
        let size = Self::allowed(size);
        Self { words: vec![0; size.div_ceil(64) + 1].into(), size: size as u64, next: 0, floor: 0 }
    }

    fn allowed(size: usize) -> usize {
        size.clamp(MIN_WINDOW, MAX_WINDOW).next_multiple_of(64)
    }

    /// Whether `counter` may be received. Changes nothing: the frame is not authenticated yet.
    pub(crate) fn check(&self, counter: u64) -> Result<(), Refused> {
        if counter >= self.next {
            return Ok(());
        }
        if counter < self.floor || self.next - counter > self.size {
            return Err(Refused::TooOld);
        }
        if self.word(counter) & bit(counter) == 0 { Ok(()) } else { Err(Refused::Seen) }
    }

    /// Remembers an authenticated counter that [`ReplayWindow::check`] let pass.
    pub(crate) fn commit(&mut self, counter: u64) {
        if counter >= self.next {
            // Words between the old and the new top are stale: their former counters have left the window.
            let (old, new) = (self.next.checked_sub(1).map_or(0, |top| top / WORD), counter / WORD);
            let stale = (new - old).min(self.words.len() as u64);
            for word in (new - stale + 1)..=new {
                *self.word_mut(word * WORD) = 0;
            }
            self.next = counter + 1;
        }
        *self.word_mut(counter) |= bit(counter);
    }

    /// Changes the size. What a larger window would have to know and the old one has forgotten stays refused.
    pub(crate) fn resize(&mut self, size: usize) {
        let mut resized = Self::new(size);
        if resized.size == self.size {
            return;
        }
        resized.next = self.next;
        resized.floor = self.floor.max(self.next.saturating_sub(self.size.min(resized.size)));
        let mut counter = resized.floor;
        while counter < self.next {
            *resized.word_mut(counter) = self.word(counter);
            counter = (counter / WORD + 1) * WORD;
        }
        *self = resized;
    }

    fn index(&self, counter: u64) -> usize {
        (counter / WORD % self.words.len() as u64) as usize
    }

    fn word(&self, counter: u64) -> u64 {
        self.words.get(self.index(counter)).copied().unwrap_or(u64::MAX)
    }

    fn word_mut(&mut self, counter: u64) -> &mut u64 {
        let index = self.index(counter);
        #[expect(clippy::indexing_slicing, reason = "the index is a remainder by the length, which is not zero")]
        &mut self.words[index]
    }
}

fn bit(counter: u64) -> u64 {
    1 << (counter % WORD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// The definition: a set of all counters ever received.
    struct Model {
        seen: HashSet<u64>,
        size: u64,
        floor: u64,
    }

    impl Model {
        fn next(&self) -> u64 {
            self.seen.iter().max().map_or(0, |top| top + 1)
        }

        fn check(&self, counter: u64) -> Result<(), Refused> {
            if counter < self.floor || counter.saturating_add(self.size) < self.next() {
                Err(Refused::TooOld)
            } else if self.seen.contains(&counter) {
                Err(Refused::Seen)
            } else {
                Ok(())
            }
        }

        fn resize(&mut self, size: u64) {
            if size != self.size {
                self.floor = self.floor.max(self.next().saturating_sub(self.size.min(size)));
                self.size = size;
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Relative to the highest received.
        Near(i64),
        Far(u64),
        Resize(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (-70_000i64..3_000).prop_map(Step::Near),
            8 => (-130i64..130).prop_map(Step::Near),
            2 => (-8_260i64..-8_120).prop_map(Step::Near),
            2 => (-2_120i64..-1_980).prop_map(Step::Near),
            1 => (0u64..300_000).prop_map(Step::Far),
            1 => prop_oneof![Just(2_048usize), Just(8_192), Just(65_536)].prop_map(Step::Resize),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn agrees_with_a_set_of_everything_received(start in 0u64..200_000, steps in prop::collection::vec(step(), 1..400)) {
            let mut window = ReplayWindow::new(8_192);
            let mut model = Model { seen: HashSet::new(), size: 8_192, floor: 0 };
            let mut top = start;
            for step in steps {
                let counter = match step {
                    Step::Near(offset) => top.saturating_add_signed(offset),
                    Step::Far(counter) => counter,
                    Step::Resize(size) => {
                        window.resize(size);
                        model.resize(size as u64);
                        continue;
                    }
                };
                let verdict = window.check(counter);
                prop_assert_eq!(verdict, model.check(counter), "counter {}", counter);
                if verdict.is_ok() {
                    window.commit(counter);
                    model.seen.insert(counter);
                    top = top.max(counter);
                    prop_assert_eq!(window.check(counter), Err(Refused::Seen));
                }
            }
        }
    }

    #[test]
    fn the_edges_are_exact() {
        for size in [2_048usize, 8_192, 65_536] {
            let mut window = ReplayWindow::new(size);
            let top = 1_000_000;
            window.commit(top);
            let last = top - size as u64 + 1;
            assert_eq!(window.check(last), Ok(()));
            assert_eq!(window.check(last - 1), Err(Refused::TooOld));
            window.commit(last);
            assert_eq!(window.check(last), Err(Refused::Seen));
            window.commit(top + 1);
            assert_eq!(window.check(last), Err(Refused::TooOld));
            assert_eq!(window.check(last + 1), Ok(()));
        }
    }

    #[test]
    fn sizes_are_clamped() {
        assert_eq!(ReplayWindow::new(0).size, 2_048);
        assert_eq!(ReplayWindow::new(2_049).size, 2_112);
        assert_eq!(ReplayWindow::new(usize::MAX).size, 65_536);
        assert_eq!(ReplayWindow::new(MAX_WINDOW).words.len() * 8, 8 * 1024 + 8);
    }

    #[test]
    fn growing_lets_nothing_in_that_the_small_window_had_forgotten() {
        let mut window = ReplayWindow::new(2_048);
        for counter in 0..10_000 {
            window.commit(counter);
        }
        window.resize(65_536);
        for counter in 0..10_000 {
            assert!(window.check(counter).is_err(), "{counter}");
        }
        // From here on the large window is one: a straggler 60,000 behind is taken, once.
        window.commit(80_000);
        assert_eq!(window.check(20_000), Ok(()));
        window.commit(20_000);
        assert_eq!(window.check(20_000), Err(Refused::Seen));
    }

    #[test]
    fn the_last_counter_does_not_overflow() {
        let mut window = ReplayWindow::new(2_048);
        window.commit(crate::COUNTER_LIMIT - 1);
        assert_eq!(window.check(crate::COUNTER_LIMIT - 1), Err(Refused::Seen));
        assert_eq!(window.check(crate::COUNTER_LIMIT - 2_048), Ok(()));
        assert_eq!(window.check(0), Err(Refused::TooOld));
    }
}
