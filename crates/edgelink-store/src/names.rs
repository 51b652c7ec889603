//! Names: what people may choose, and what is made of what a machine says of itself.

use crate::error::StoreError;

/// Longest name, in characters: a DNS label's limit, so that names can become DNS names later.
const MAX_NAME: usize = 63;
/// Longest host description, in bytes.
const MAX_HOST_TEXT: usize = 255;

/// Accepts 1–63 letters, digits, `.`, `_`, `-`, not digits alone.
pub(crate) fn check(what: &str, name: &str) -> Result<(), StoreError> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.chars().count() > MAX_NAME {
        "is longer than 63 characters"
    } else if !name.chars().all(allowed) {
        "may hold letters, digits, '.', '_' and '-' only"
    } else if name.chars().all(|c| c.is_ascii_digit()) {
        "would be mistaken for an id; add a letter"
    } else {
        return Ok(());
    };
    Err(StoreError::Invalid(format!("the {what} name {name:?} {problem}")))
}

/// A valid name from a host name that anybody may have made up.
pub(crate) fn from_hostname(hostname: &str) -> String {
    let mut name: String = hostname.chars().map(|c| if allowed(c) { c } else { '-' }).take(MAX_NAME).collect();
    if name.chars().all(|c| c == '-') {
        name = "node".into();
    } else if name.chars().all(|c| c.is_ascii_digit()) {
        name = format!("node-{name}").chars().take(MAX_NAME).collect();
    }
    name
}

/// `name`, `name-2`, `name-3` …, the first that is not `taken`, within the limit.
pub(crate) fn make_unique(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut candidate = name.to_owned();
    let mut n = 1u32;
    while taken(&candidate) {
        n = n.saturating_add(1);
        let suffix = format!("-{n}");
        candidate = name.chars().take(MAX_NAME - suffix.len()).collect();
        candidate.push_str(&suffix);
    }
    candidate
}

/// What a node says of its host, cut to 255 bytes and rid of control characters: it ends up in logs and terminals.
pub(crate) fn clean_host_text(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > MAX_HOST_TEXT {
            break;
        }
        out.push(c);
    }
    out
}

fn allowed(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_may_choose_ordinary_names() {
        for good in ["main", "a", "网络", "web-1.example_x", &"x".repeat(63)] {
            assert!(check("network", good).is_ok(), "{good}");
        }
        for bad in ["", "7", "a b", "a\n", "a/b", "\u{1b}[31m", &"x".repeat(64)] {
            assert!(matches!(check("network", bad), Err(StoreError::Invalid(_))), "{bad:?}");
        }
    }

    #[test]
    fn any_host_name_becomes_a_valid_name() {
        for (hostname, want) in
            [("web-1", "web-1"), ("", "node"), ("\u{7}\u{1b}", "node"), ("12", "node-12"), ("a b", "a-b")]
        {
            assert_eq!(from_hostname(hostname), want);
        }
        for hostname in ["9".repeat(300), "é".repeat(300), "-".repeat(300)] {
            check("node", &from_hostname(&hostname)).unwrap();
        }
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        let taken = ["web", "web-2"];
        assert_eq!(make_unique("web", |n| taken.contains(&n)), "web-3");
        assert_eq!(make_unique("db", |n| taken.contains(&n)), "db");
        let long = "x".repeat(63);
        let unique = make_unique(&long, |n| n == long);
        assert_eq!(unique, format!("{}-2", "x".repeat(61)));
    }

    #[test]
    fn host_text_is_cut_at_a_character() {
        assert_eq!(clean_host_text("a\u{1b}[0mb\n"), "a[0mb");
        assert_eq!(clean_host_text(&"é".repeat(200)).len(), 254);
    }
}
