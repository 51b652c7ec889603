//! An ERROR in the log fails a run: it means that something is broken, whatever the packets did.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write as _};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

thread_local! {
    static ERRORS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The virtual time of what is logged next.
pub(crate) fn set_time(now: Duration) {
    NOW.set(now);
}

/// Runs `f` and returns what it logged at level ERROR on this thread beside its result.
pub fn errors_of<T>(f: impl FnOnce() -> T) -> (T, Vec<String>) {
    ERRORS.take();
    let result = tracing::subscriber::with_default(Trap, f);
    (result, ERRORS.take())
}

/// Takes ERRORs, and shows everything from `EDGELINK_SIM_LOG` (such as `debug`) up on stderr.
struct Trap;

impl Subscriber for Trap {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= shown().max(Level::ERROR)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let mut line = Line(format!("{:?} {} {}:", NOW.get(), metadata.level(), metadata.target()));
        event.record(&mut line);
        if *metadata.level() == Level::ERROR {
            ERRORS.with_borrow_mut(|errors| errors.push(line.0.clone()));
        }
        if *metadata.level() <= shown() {
            eprintln!("{}", line.0);
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

fn shown() -> Level {
    static SHOWN: std::sync::LazyLock<Level> = std::sync::LazyLock::new(|| {
        std::env::var("EDGELINK_SIM_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(Level::ERROR)
    });
    *SHOWN
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = if field.name() == "message" {
            write!(self.0, " {value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}
