//! "Did you mean …?"

use crate::schema::{Key, Kind, join};

/// Below this likeness a suggestion only confuses.
const ALIKE: f64 = 0.6;

/// The full path of the known key that is most like `path`.
pub(crate) fn key(path: &str, schema: &[Key]) -> Option<String> {
    let asked = without_indices(path);
    let mut known = Vec::new();
    paths(schema, "", &mut known);
    // A key put under the wrong object has its exact name elsewhere; that beats a faint likeness nearby.
    let misplaced = || known.iter().find(|candidate| last(candidate) == last(&asked)).cloned();
    closest(&asked, known.iter().filter(|candidate| parent(candidate) == parent(&asked)))
        .or_else(misplaced)
        .or_else(|| closest(&asked, known.iter()))
}

/// The one of `known` that is most like `asked`, if any is.
pub(crate) fn closest<'k>(asked: &str, known: impl Iterator<Item = &'k String>) -> Option<String> {
    known
        .map(|candidate| (strsim::normalized_damerau_levenshtein(asked, candidate), candidate))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.clone())
}

fn paths(schema: &[Key], outer: &str, out: &mut Vec<String>) {
    for key in schema {
        let path = join(outer, key.name);
        if let Kind::Section(keys) | Kind::List(keys) = key.kind {
            paths(keys, &path, out);
        }
        out.push(path);
    }
}

fn without_indices(path: &str) -> String {
    path.split('.').map(|part| part.split('[').next().unwrap_or(part)).collect::<Vec<_>>().join(".")
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn parent(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(parent, _)| parent)
}
