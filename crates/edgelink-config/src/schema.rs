//! One declaration per key: the `section!` macro makes from it the struct, its defaults, the strict reader, the
//! environment variables and the commented starter, so that these can never disagree.

use crate::error::{ConfigError, Origin};
use crate::nearest;
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// What a reader must know beside the value.
pub(crate) struct Context<'a> {
    pub(crate) source: Source<'a>,
    /// Whole schema of the program, for suggestions.
    pub(crate) schema: &'static [Key],
    /// What `~` stands for.
    pub(crate) home: Option<&'a Path>,
}

/// Where the value being read came from.
pub(crate) enum Source<'a> {
    File(&'a Path, &'a HashMap<String, usize>),
    Variable(&'a str),
    Setting,
}

impl Context<'_> {
    fn origin(&self, path: &str) -> Origin {
        match self.source {
            Source::File(file, lines) => Origin::File(file.to_owned(), lines.get(path).copied()),
            Source::Variable(name) => Origin::Variable(name.to_owned()),
            Source::Setting => Origin::Setting,
        }
    }

    /// The error for a value that is not what it must be.
    pub(crate) fn wrong(&self, path: &str, expected: impl Into<String>, found: impl Into<String>) -> ConfigError {
        ConfigError::WrongValue {
            origin: self.origin(path),
            key: if path.is_empty() { "(the whole file)".to_owned() } else { path.to_owned() },
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// The error for a key that does not exist.
    pub(crate) fn unknown(&self, path: &str) -> ConfigError {
        ConfigError::UnknownKey {
            origin: self.origin(path),
            key: path.to_owned(),
            nearest: nearest::key(path, self.schema),
        }
    }

    /// The error for a key that must be there.
    pub(crate) fn missing(&self, object: &str, key: &str) -> ConfigError {
        ConfigError::MissingKey { origin: self.origin(object), key: join(object, key) }
    }
}

/// One key of the schema.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// Lines of documentation.
    pub(crate) doc: &'static [&'static str],
    /// JSON text shown by the starter where there is no default.
    pub(crate) example: Option<&'static str>,
    pub(crate) kind: Kind,
}

/// How a value looks.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A string; a variable's text is taken as it is.
    Text,
    /// A number, a truth value or an object without fixed keys: a variable's text is JSON.
    Json,
    /// A word or an object; a variable's text is JSON if it begins with `{`.
    Word,
    /// A list; a variable's text is a JSON array, or strings between commas.
    List(&'static [Key]),
    /// An object with these keys, each with a variable of its own.
    Section(&'static [Key]),
}

/// A type that a key can have.
pub(crate) trait Field: Sized {
    const KIND: Kind;
    /// Keys that must be present where this is an element of a list.
    const REQUIRED: &'static [&'static str] = &[];

    /// Reads a value afresh; a section takes the defaults for what `value` does not mention.
    fn read(value: &Value, cx: &Context<'_>, path: &str) -> Result<Self, ConfigError>;

    /// Takes over what `value` says; a section keeps what it does not mention.
    fn apply(&mut self, value: &Value, cx: &Context<'_>, path: &str) -> Result<(), ConfigError> {
        Self::read(value, cx, path).map(|read| *self = read)
    }

    /// The value as a file would have it; `Null` when there is none.
    fn to_json(&self) -> Value;
}

/// A struct whose fields are keys.
pub(crate) trait Section: Field {
    const KEYS: &'static [Key];
}

/// `outer.key`.
pub(crate) fn join(outer: &str, key: &str) -> String {
    if outer.is_empty() { key.to_owned() } else { format!("{outer}.{key}") }
}

/// `list[3]`.
pub(crate) fn element(list: &str, index: usize) -> String {
    format!("{list}[{index}]")
}

/// The members of an object.
pub(crate) fn members<'v>(
    value: &'v Value,
    cx: &Context<'_>,
    path: &str,
) -> Result<&'v Map<String, Value>, ConfigError> {
    value.as_object().ok_or_else(|| cx.wrong(path, "an object { … }", describe(value)))
}

/// The JSON type of `value` in words, without the value itself.
pub(crate) fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Declares a section: `/// doc` `name: Type = default [, in range] [, eg "JSON example"];` …
macro_rules! section {
    ($(#[$meta:meta])* pub struct $name:ident $(requires [$($required:literal),*])? {
        $($(#[doc = $doc:literal])+ $field:ident $(($key:literal))?: $ty:ty = $default:expr $(, in $range:expr)? $(, eg $example:literal)?;)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name { $($(#[doc = $doc])+ pub $field: $ty,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $crate::schema::Section for $name {
            const KEYS: &'static [$crate::schema::Key] = &[$($crate::schema::Key {
                name: $crate::schema::section!(@name $field $($key)?),
                doc: &[$($doc),+],
                example: $crate::schema::section!(@example $($example)?),
                kind: <$ty as $crate::schema::Field>::KIND,
            },)*];
        }

        impl $crate::schema::Field for $name {
            const KIND: $crate::schema::Kind = $crate::schema::Kind::Section(<Self as $crate::schema::Section>::KEYS);
            $(const REQUIRED: &'static [&'static str] = &[$($required),*];)?

            fn read(
                value: &serde_json::Value,
                cx: &$crate::schema::Context<'_>,
                path: &str,
            ) -> Result<Self, $crate::ConfigError> {
                let mut section = Self::default();
                section.apply(value, cx, path)?;
                Ok(section)
            }

            fn apply(
                &mut self,
                value: &serde_json::Value,
                cx: &$crate::schema::Context<'_>,
                path: &str,
            ) -> Result<(), $crate::ConfigError> {
                for (key, value) in $crate::schema::members(value, cx, path)? {
                    let path = $crate::schema::join(path, key);
                    match key.as_str() {
                        $($crate::schema::section!(@name $field $($key)?) => {
                            self.$field.apply(value, cx, &path)?;
                            $($crate::schema::in_range(&self.$field, &$range, value, cx, &path)?;)?
                        })*
                        _ => return Err(cx.unknown(&path)),
                    }
                }
                Ok(())
            }

            fn to_json(&self) -> serde_json::Value {
                let mut members = serde_json::Map::new();
                $(members.insert(
                    $crate::schema::section!(@name $field $($key)?).to_owned(),
                    $crate::schema::Field::to_json(&self.$field),
                );)*
                serde_json::Value::Object(members)
            }
        }
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $key:literal) => { $key };
    (@example) => { None };
    (@example $example:literal) => { Some($example) };
}
pub(crate) use section;

/// Refuses what lies outside `range`.
pub(crate) fn in_range<T: PartialOrd + std::fmt::Display>(
    parsed: &T,
    range: &std::ops::RangeInclusive<T>,
    value: &Value,
    cx: &Context<'_>,
    path: &str,
) -> Result<(), ConfigError> {
    if range.contains(parsed) {
        return Ok(());
    }
    Err(cx.wrong(path, format!("a number from {} to {}", range.start(), range.end()), value.to_string()))
}

/// A leaf that is written as a string.
pub(crate) trait Text: Sized {
    /// What it must be, with an example.
    const EXPECTED: &'static str;
    /// Whether an error may not show what was found.
    const SECRET: bool = false;

    /// `None`: it is not what [`Self::EXPECTED`] says. The error may say more.
    fn parse(text: &str, home: Option<&Path>) -> Result<Self, Option<String>>;

    fn show(&self) -> String;
}

impl<T: Text> Field for T {
    const KIND: Kind = Kind::Text;

    fn read(value: &Value, cx: &Context<'_>, path: &str) -> Result<Self, ConfigError> {
        let text = value.as_str().ok_or_else(|| cx.wrong(path, T::EXPECTED, describe(value)))?;
        T::parse(text, cx.home).map_err(|why| {
            let found = if T::SECRET { "what is there".to_owned() } else { format!("{text:?}") };
            cx.wrong(path, T::EXPECTED, found + &why.map(|why| format!(" ({why})")).unwrap_or_default())
        })
    }

    fn to_json(&self) -> Value {
        Value::String(self.show())
    }
}

/// Leaves that `FromStr` reads.
macro_rules! text_by_from_str {
    ($($ty:ty: $expected:literal;)*) => {$(
        impl Text for $ty {
            const EXPECTED: &'static str = $expected;

            fn parse(text: &str, _: Option<&Path>) -> Result<Self, Option<String>> {
                text.parse().map_err(|_| None)
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

text_by_from_str! {
    String: "a string";
    IpAddr: "an IP address such as \"198.18.0.1\"";
    SocketAddr: "an IP address and port such as \"0.0.0.0:443\" or \"[::]:443\"";
}

impl Text for IpNet {
    const EXPECTED: &'static str = "a network in CIDR notation such as \"192.168.1.0/24\"";

    fn parse(text: &str, _: Option<&Path>) -> Result<Self, Option<String>> {
        let net: IpNet = text.parse().map_err(|_| None)?;
        if net != net.trunc() {
            return Err(Some(format!("bits are set behind the prefix; do you mean {}?", net.trunc())));
        }
        Ok(net)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Text for PathBuf {
    const EXPECTED: &'static str = "the path of a file or directory";

    fn parse(text: &str, home: Option<&Path>) -> Result<Self, Option<String>> {
        match text.strip_prefix('~') {
            _ if text.is_empty() => Err(Some("it is empty".into())),
            None => Ok(Self::from(text)),
            Some(rest) if rest.is_empty() || rest.starts_with('/') => home
                .map(|home| home.join(rest.trim_start_matches('/')))
                .ok_or_else(|| Some("`~` needs the environment variable HOME".into())),
            Some(_) => Err(Some("`~user` is not supported; write the full path".into())),
        }
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Text for edgelink_api::Secret {
    const EXPECTED: &'static str = "a string";
    const SECRET: bool = true;

    fn parse(text: &str, _: Option<&Path>) -> Result<Self, Option<String>> {
        Ok(Self::new(text))
    }

    fn show(&self) -> String {
        "…".to_owned()
    }
}

impl Field for bool {
    const KIND: Kind = Kind::Json;

    fn read(value: &Value, cx: &Context<'_>, path: &str) -> Result<Self, ConfigError> {
        value.as_bool().ok_or_else(|| cx.wrong(path, "true or false", describe(value)))
    }

    fn to_json(&self) -> Value {
        json!(self)
    }
}

macro_rules! integer {
    ($($ty:ident)*) => {$(
        impl Field for $ty {
            const KIND: Kind = Kind::Json;

            fn read(value: &Value, cx: &Context<'_>, path: &str) -> Result<Self, ConfigError> {
                value.as_u64().and_then(|n| $ty::try_from(n).ok()).ok_or_else(|| {
                    let found = if value.is_number() { value.to_string() } else { describe(value).to_owned() };
                    cx.wrong(path, format!("a whole number from 0 to {}", $ty::MAX), found)
                })
            }

            fn to_json(&self) -> Value {
                json!(self)
            }
        }
    )*};
}

integer! { u16 u32 }

/// `null` is "none".
impl<T: Field> Field for Option<T> {
    const KIND: Kind = T::KIND;

    fn read(value: &Value, cx: &Context<'_>, path: &str) -> Result<Self, ConfigError> {
        if value.is_null() { Ok(None) } else { T::read(value, cx, path).map(Some) }
    }

    fn apply(&mut self, value: &Value, cx: &Context<'_>, path: &str) -> Result<(), ConfigError> {
        match self {
            Some(inner) if !value.is_null() => inner.apply(value, cx, path),
            _ => Self::read(value, cx, path).map(|read| *self = read),
        }
    }

    fn to_json(&self) -> Value {
        self.as_ref().map_or(Value::Null, Field::to_json)
    }
}

/// Replaced as a whole, never appended to.
impl<T: Field> Field for Vec<T> {
    const KIND: Kind = Kind::List(match T::KIND {
        Kind::Section(keys) => keys,
        _ => &[],
    });

    fn read(value: &Value, cx: &Context<'_>, path: &str) -> Result<Self, ConfigError> {
        let elements = value.as_array().ok_or_else(|| cx.wrong(path, "a list [ … ]", describe(value)))?;
        let mut list = Vec::with_capacity(elements.len());
        for (i, value) in elements.iter().enumerate() {
            let path = element(path, i);
            list.push(T::read(value, cx, &path)?);
            if let Some(missing) = T::REQUIRED.iter().find(|key| value.get(key).is_none()) {
                return Err(cx.missing(&path, missing));
            }
        }
        Ok(list)
    }

    fn to_json(&self) -> Value {
        self.iter().map(Field::to_json).collect()
    }
}
