//! The environment, as an argument.

use crate::Program;
use crate::document;
use crate::error::ConfigError;
use crate::nearest;
use crate::schema::{Key, Kind};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Variables that are no configuration key.
const OTHERS: &[&str] = &[
    "EDGELINK_BIN_DIR",
    "EDGELINK_CACHE",
    "EDGELINK_CONFIG",
    "EDGELINK_LOG",
    "EDGELINK_PASSWORD",
    "EDGELINK_PYTHON",
    "EDGELINK_SOCKET",
    "EDGELINK_STATE_DIR",
    "EDGELINK_TOKEN",
    "EDGELINK_UPDATE_OPENAPI",
    "EDGELINK_URL",
];

/// The test laboratory's own variables begin so; the programs that it starts inherit them.
const TESTBED: &str = "EDGELINK_TESTBED_";

const PREFIX: &str = "EDGELINK_";

/// A copy of the environment; values that are not UTF-8 are replaced where they must be.
///
/// Key `a.b_c` is variable `EDGELINK_A__B_C`: two underscores between levels, in capitals. A string is taken as it is,
/// numbers and truth values are written as in JSON, a list as a JSON array or as strings between commas, and a whole
/// object, or `null`, as JSON. An empty variable counts as not set.
#[derive(Clone, Debug, Default)]
pub struct Env(BTreeMap<String, OsString>);

impl Env {
    /// From pairs such as those of `std::env::vars_os()`.
    pub fn new<K: Into<OsString>, V: Into<OsString>>(variables: impl IntoIterator<Item = (K, V)>) -> Self {
        let named = |(name, value): (K, V)| Some((name.into().into_string().ok()?, value.into()));
        Self(variables.into_iter().filter_map(named).filter(|(_, value)| !value.is_empty()).collect())
    }

    /// The value of `name`, if it is set, not empty, and UTF-8.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str()
    }

    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// What `~` means.
    pub(crate) fn home(&self) -> Option<&Path> {
        self.0.get("HOME").map(Path::new).filter(|home| home.is_absolute())
    }

    /// Every variable that overrides a key, outer objects before their members, as (name, nested object).
    pub(crate) fn overrides(&self, program: Program) -> Result<Vec<(&str, Value)>, ConfigError> {
        let mut found = Vec::new();
        for (name, text) in &self.0 {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            let Some(keys) = path_to(program.schema(), rest) else {
                if is_known_elsewhere(name, rest) {
                    continue;
                }
                return Err(ConfigError::UnknownVariable { name: name.clone(), nearest: nearest_to(name, program) });
            };
            let text = text.to_str().ok_or_else(|| ConfigError::Syntax {
                origin: crate::Origin::Variable(name.clone()),
                problem: "the value is not UTF-8".into(),
            })?;
            found.push((keys.len(), name.as_str(), nest(&keys, name, text)?));
        }
        found.sort_by_key(|(depth, ..)| *depth);
        Ok(found.into_iter().map(|(_, name, value)| (name, value)).collect())
    }
}

/// The variable of a key path.
pub(crate) fn variable(keys: &[&str]) -> String {
    PREFIX.to_owned() + &keys.join("__").to_ascii_uppercase()
}

/// The keys that `rest`, such as `LISTEN__HTTP`, names.
fn path_to(schema: &'static [Key], rest: &str) -> Option<Vec<&'static Key>> {
    let (first, inner) = rest.split_once("__").map_or((rest, None), |(first, inner)| (first, Some(inner)));
    let key = schema.iter().find(|key| key.name.to_ascii_uppercase() == first)?;
    let mut path = vec![key];
    match (inner, key.kind) {
        (None, _) => {}
        (Some(inner), Kind::Section(keys)) => path.extend(path_to(keys, inner)?),
        (Some(_), _) => return None,
    }
    Some(path)
}

/// One host may run several programs from one environment file.
fn is_known_elsewhere(name: &str, rest: &str) -> bool {
    OTHERS.contains(&name)
        || name.starts_with(TESTBED)
        || Program::ALL.iter().any(|program| path_to(program.schema(), rest).is_some())
}

/// `{"a": {"b": value}}` for the keys a, b.
fn nest(keys: &[&Key], name: &str, text: &str) -> Result<Value, ConfigError> {
    let mut value = match keys.last().map(|key| key.kind) {
        None | Some(Kind::Text) => Value::String(text.to_owned()),
        Some(Kind::List(_)) if !text.trim_start().starts_with(['[', '{']) => {
            text.split(',').map(|item| Value::String(item.trim().to_owned())).collect()
        }
        Some(Kind::Word) if !text.trim_start().starts_with('{') => Value::String(text.to_owned()),
        Some(Kind::List(_) | Kind::Json | Kind::Word | Kind::Section(_)) => document::parse_variable(name, text)?,
    };
    for key in keys.iter().rev() {
        value = Value::Object(Map::from_iter([(key.name.to_owned(), value)]));
    }
    Ok(value)
}

fn nearest_to(name: &str, program: Program) -> Option<String> {
    let mut known: Vec<String> = OTHERS.iter().map(|&other| other.to_owned()).collect();
    collect(program.schema(), &mut Vec::new(), &mut known);
    nearest::closest(name, known.iter())
}

/// All variables of a schema.
pub(crate) fn collect(schema: &'static [Key], outer: &mut Vec<&'static str>, out: &mut Vec<String>) {
    for key in schema {
        outer.push(key.name);
        out.push(variable(outer));
        if let Kind::Section(keys) = key.kind {
            collect(keys, outer, out);
        }
        outer.pop();
    }
}
