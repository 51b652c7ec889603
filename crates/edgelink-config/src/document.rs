//! JSON with comments → `serde_json::Value`, remembering on which line each key stands.

use crate::error::{ConfigError, Origin};
use crate::schema::{element, join};
use jsonc_parser::ast::Value as Ast;
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, CommentCollectionStrategy, ParseOptions};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Comments and trailing commas are welcome; every other liberty hides a mistake.
const OPTIONS: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_loose_object_property_names: false,
    allow_trailing_commas: true,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

/// A parsed file.
pub(crate) struct Document {
    pub(crate) value: Value,
    /// Full key path → line, from 1.
    pub(crate) lines: HashMap<String, usize>,
}

/// Parses the text of `file`; an empty one is an empty object.
pub(crate) fn parse_file(file: &Path, text: &str) -> Result<Document, ConfigError> {
    let at = |line| Origin::File(file.to_owned(), line);
    let ast = parse(text).map_err(|(line, problem)| ConfigError::Syntax { origin: at(Some(line)), problem })?;
    let mut lines = HashMap::new();
    let Some(ast) = ast else { return Ok(Document { value: Value::Object(Default::default()), lines }) };
    index(&ast, "", text, &mut lines)
        .map_err(|(line, key)| ConfigError::DuplicateKey { origin: at(Some(line)), key })?;
    Ok(Document { value: ast.into(), lines })
}

/// Parses a variable's text.
pub(crate) fn parse_variable(name: &str, text: &str) -> Result<Value, ConfigError> {
    parse_value(text, || Origin::Variable(name.to_owned()))
}

/// Parses the text of a setting.
pub(crate) fn parse_setting(key: &str, text: &str) -> Result<Value, ConfigError> {
    parse_value(text, || Origin::Setting).map_err(|error| match error {
        ConfigError::Syntax { problem, .. } => {
            ConfigError::Syntax { origin: Origin::Setting, problem: format!("`{key}`: {problem}") }
        }
        other => other,
    })
}

fn parse_value(text: &str, origin: impl Fn() -> Origin) -> Result<Value, ConfigError> {
    let ast = parse(text).map_err(|(_, problem)| ConfigError::Syntax { origin: origin(), problem })?;
    let Some(ast) = ast else { return Ok(Value::Null) };
    index(&ast, "", text, &mut HashMap::new())
        .map_err(|(_, key)| ConfigError::DuplicateKey { origin: origin(), key })?;
    Ok(ast.into())
}

fn parse(text: &str) -> Result<Option<Ast<'_>>, (usize, String)> {
    let collect = CollectOptions { comments: CommentCollectionStrategy::Off, tokens: false };
    match jsonc_parser::parse_to_ast(text.trim_start_matches('\u{feff}'), &collect, &OPTIONS) {
        Ok(result) => Ok(result.value),
        // Only the kind: the full message quotes the source, which may hold secrets.
        Err(error) => Err((
            error.line_display(),
            format!("{} (line {}, column {})", error.kind(), error.line_display(), error.column_display()),
        )),
    }
}

/// Notes the line of every key; the error is the line and path of a key that stands twice.
fn index(ast: &Ast<'_>, path: &str, text: &str, lines: &mut HashMap<String, usize>) -> Result<(), (usize, String)> {
    match ast {
        Ast::Object(object) => {
            let mut seen = HashSet::new();
            for property in &object.properties {
                let key = join(path, property.name.as_str());
                let line = line_of(text, property.range().start);
                if !seen.insert(property.name.as_str()) {
                    return Err((line, key));
                }
                lines.insert(key.clone(), line);
                index(&property.value, &key, text, lines)?;
            }
            Ok(())
        }
        Ast::Array(array) => array.elements.iter().enumerate().try_for_each(|(i, value)| {
            let path = element(path, i);
            lines.insert(path.clone(), line_of(text, value.range().start));
            index(value, &path, text, lines)
        }),
        _ => Ok(()),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}
