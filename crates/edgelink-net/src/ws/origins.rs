//! Several servers of which one is the right one at a time, as controllers are that share a database (DESIGN §4): whichever
//! takes the WebSocket is it.

use super::{Dial, DialError, WebSocket, dial};
use crate::ws::AddressFilter;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A header of HTTP 503: the origin (`wss://HOST[:PORT]`) of the server that is the right one.
pub const ACTIVE: &str = "edgelink-active";

/// How long one origin may be silent before the next is dialled beside it.
pub const STAGGER: Duration = Duration::from_secs(1);

/// The origins (`wss://HOST[:PORT]`) of one service: the configured one, and those that the service itself has told. Clones
/// share what they know.
#[derive(Clone)]
pub struct Origins {
    configured: String,
    /// For addresses of origins that were told (DESIGN §9).
    filter: Option<AddressFilter>,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    told: Vec<String>,
    last: Option<String>,
}

impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Origins").field(&self.order()).finish()
    }
}

impl Origins {
    /// More are not dialled.
    pub const AT_MOST: usize = 8;

    /// The configured one alone. `filter` is asked about the addresses of those that are told later.
    #[must_use]
    pub fn new(configured: impl Into<String>, filter: Option<AddressFilter>) -> Self {
        Self { configured: configured.into(), filter, known: Arc::default() }
    }

    /// The service says that it is at these too; what it said before is forgotten.
    pub fn tell(&self, others: &[String]) {
        self.known().told = others.to_vec();
    }

    /// This one has proved to be the right one: it is dialled first from now on.
    pub fn remember(&self, origin: &str) {
        self.known().last = Some(origin.to_owned());
    }

    /// The one that is dialled first.
    #[must_use]
    pub fn first(&self) -> String {
        self.known().last.clone().unwrap_or_else(|| self.configured.clone())
    }

    /// Opens a WebSocket at `path` of whichever origin takes it: the next is dialled when one fails, or beside it after
    /// [`STAGGER`]. One that stands by may name another ([`ACTIVE`]). `how.url` is not used; `how.sni`, `how.headers`' `Host`
    /// and `how.address_filter` are for the configured origin.
    ///
    /// # Errors
    /// Why the configured origin could not be used, when none could.
    pub async fn dial(&self, how: &Dial, path: &str) -> Result<(WebSocket, String), DialError> {
        let mut waiting = VecDeque::from(self.order());
        let mut asked: BTreeSet<String> = waiting.iter().cloned().collect();
        let mut running = FuturesUnordered::new();
        let mut failure = None;
        // Whether it is time for the next.
        let mut next = true;
        loop {
            if next && let Some(origin) = waiting.pop_front() {
                running.push(self.attempt(how, path, origin));
            }
            next = tokio::select! {
                biased;
                Some((origin, result)) = running.next() => match result {
                    Ok(ws) => return Ok((ws, origin)),
                    Err(error) => {
                        if let DialError::Http { active: Some(active), .. } = &error
                            && asked.len() < 2 * Self::AT_MOST
                            && asked.insert(active.clone())
                        {
                            waiting.push_front(active.clone());
                        }
                        if failure.is_none() || origin == self.configured {
                            failure = Some(error);
                        }
                        true
                    }
                },
                () = tokio::time::sleep(STAGGER), if !waiting.is_empty() => true,
            };
            if running.is_empty() && waiting.is_empty() {
                return Err(failure.unwrap_or(DialError::Url { why: "there is none" }));
            }
        }
    }

    async fn attempt(&self, how: &Dial, path: &str, origin: String) -> (String, Result<WebSocket, DialError>) {
        let mut this = Dial { url: format!("{origin}{path}"), ..how.clone() };
        if origin != self.configured {
            this.sni = None;
            this.headers.remove(http::header::HOST);
            this.address_filter = self.filter.clone();
        }
        let result = dial(&this).await;
        (origin, result)
    }

    /// The one that was right last, the configured one, those that were told.
    fn order(&self) -> Vec<String> {
        let known = self.known();
        let mut order: Vec<String> = Vec::new();
        for origin in known.last.iter().chain([&self.configured]).chain(&known.told) {
            if order.len() < Self::AT_MOST && !order.contains(origin) {
                order.push(origin.clone());
            }
        }
        order
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_right_one_comes_first_and_the_list_is_bounded() {
        let origins = Origins::new("wss://a", None);
        assert_eq!((origins.order(), origins.first()), (vec!["wss://a".to_owned()], "wss://a".to_owned()));
        origins.tell(&["wss://b".to_owned(), "wss://a".to_owned()]);
        assert_eq!(origins.order(), ["wss://a", "wss://b"]);
        origins.remember("wss://b");
        assert_eq!(
            (origins.order(), origins.first()),
            (vec!["wss://b".to_owned(), "wss://a".to_owned()], "wss://b".to_owned())
        );
        origins.tell(&(0..100).map(|n| format!("wss://{n}")).collect::<Vec<_>>());
        assert_eq!(origins.clone().order().len(), Origins::AT_MOST);
        assert_eq!(origins.order().get(..2), Some(&["wss://b".to_owned(), "wss://a".to_owned()][..]));
    }
}
