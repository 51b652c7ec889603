//! What several of the tests need: the golden vectors of `docs/protocol.md`.

#![allow(dead_code, reason = "no test uses all of it")]

use edgelink_wire::{Frame, WireError, frames};
use std::collections::BTreeMap;

const PROTOCOL_MD: &str = include_str!("../../../../docs/protocol.md");

/// Every block ```` ```hex NAME ```` of the document.
pub(crate) fn vectors() -> BTreeMap<&'static str, Vec<u8>> {
    let mut vectors = BTreeMap::new();
    let mut lines = PROTOCOL_MD.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("```hex ") else { continue };
        let digits: String = lines
            .by_ref()
            .take_while(|line| *line != "```")
            .flat_map(|line| line.split('#').next().unwrap().split_whitespace())
            .collect();
        let bytes = hex::decode(digits).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(vectors.insert(name, bytes).is_none(), "{name} is there twice");
    }
    vectors
}

/// One of them.
pub(crate) fn vector(name: &str) -> Vec<u8> {
    vectors().remove(name).unwrap_or_else(|| panic!("docs/protocol.md has no vector {name}"))
}

/// The only frame of a message.
pub(crate) fn only_frame(message: &[u8]) -> Result<Frame<'_>, WireError> {
    let all: Vec<_> = frames(message).collect::<Result<_, _>>()?;
    assert_eq!(all.len(), 1);
    Ok(all[0])
}
