//! The commented file that `config init` writes.

use crate::schema::{Key, Kind};
use crate::{Config, env};
use serde_json::Value;
use std::fmt::Write as _;

/// A file with every key at its default, each with its documentation and its environment variable; keys without a
/// default are commented out.
pub fn starter<T: Config>() -> String {
    let mut out = format!(
        "// {} configuration: JSON with comments. What stands here is the default, and what is left out stays so.\n\
         // Every key can be overridden by the environment variable named beside it.\n{{\n",
        T::PROGRAM.binary()
    );
    object(T::PROGRAM.schema(), &T::default().to_json(), &mut Vec::new(), &mut out);
    out.push_str("}\n");
    out
}

fn object(keys: &'static [Key], defaults: &Value, outer: &mut Vec<&'static str>, out: &mut String) {
    let indent = "  ".repeat(outer.len() + 1);
    for (i, key) in keys.iter().enumerate() {
        let default = defaults.get(key.name).unwrap_or(&Value::Null);
        outer.push(key.name);
        one(key, default, &indent, outer, out);
        outer.pop();
        if outer.is_empty() && i + 1 < keys.len() {
            out.push('\n');
        }
    }
}

fn one(key: &Key, default: &Value, indent: &str, outer: &mut Vec<&'static str>, out: &mut String) {
    let (name, variable) = (key.name, env::variable(outer));
    for line in key.doc {
        let _infallible = writeln!(out, "{indent}//{line}");
    }
    if let (Kind::Section(members), Value::Object(_)) = (key.kind, default) {
        let _infallible = writeln!(out, "{indent}\"{name}\": {{");
        object(members, default, outer, out);
        let _infallible = writeln!(out, "{indent}}},");
        return;
    }
    // Not there by default, so its members are told in words.
    if let Kind::Section(members) | Kind::List(members) = key.kind {
        for member in members {
            outer.push(member.name);
            let own = matches!(key.kind, Kind::Section(_)).then(|| format!(" ({})", env::variable(outer)));
            outer.pop();
            let _infallible = writeln!(
                out,
                "{indent}//   {}{}:{}",
                member.name,
                own.unwrap_or_default(),
                member.doc.join(&format!("\n{indent}//    "))
            );
        }
    }
    let empty = default.is_null() || default.as_array().is_some_and(Vec::is_empty) || *default == serde_json::json!({});
    let _infallible = match key.example {
        Some(example) if empty => writeln!(out, "{indent}// \"{name}\": {example},  // {variable}"),
        _ if default.is_null() => writeln!(out, "{indent}// \"{name}\": null,  // {variable}"),
        _ => writeln!(out, "{indent}\"{name}\": {default},  // {variable}"),
    };
}
