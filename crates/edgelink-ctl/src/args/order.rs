//! Options that may stand where clap cannot have them.

use std::ffi::OsString;

/// Makes `--socket=PATH` of `--socket PATH`, which to clap might as well be `--socket COMMAND`, if the next word looks like a
/// path; and puts `--url` before the command, wherever it was written: clap cannot have it everywhere since `server add` has one of its
/// own, which stays.
pub(crate) fn url_first(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    /// Options before or behind a command that take the next word.
    const TAKE_A_VALUE: [&str; 5] = ["--db", "--config", "--pin", "--ca-file", "--url"];
    let mut args: Vec<OsString> = args.into_iter().collect();
    let mut commands = Vec::new();
    let mut at = 1;
    while let Some(word) = args.get(at).map(|word| word.to_string_lossy().into_owned()) {
        // Words behind `--` are no options.
        if word == "--" {
            break;
        }
        if word == "--socket"
            && let Some(path) = args.get(at + 1).filter(|path| is_path(&path.to_string_lossy()))
        {
            let mut joined = OsString::from("--socket=");
            joined.push(path);
            args.splice(at..at + 2, [joined]);
            at += 1;
            continue;
        }
        let words = match word.as_str() {
            "--url" => 2,
            _ if word.starts_with("--url=") => 1,
            _ => 0,
        };
        let theirs = matches!(commands.as_slice(), [first, second] if first == "server" && second == "add");
        if words > 0 && !commands.is_empty() && !theirs && at + words <= args.len() {
            let moved: Vec<OsString> = args.drain(at..at + words).collect();
            args.splice(1..1, moved);
            at += words;
            continue;
        }
        if !word.starts_with('-') && commands.len() < 2 {
            commands.push(word.clone());
        }
        at += if TAKE_A_VALUE.contains(&word.as_str()) { 2 } else { 1 };
    }
    args
}

fn is_path(word: &str) -> bool {
    ["/", "./", "../"].iter().any(|start| word.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command, ServerCommand};
    use clap::Parser as _;

    #[test]
    fn the_controllers_url_is_taken_from_anywhere() {
        let url = |line: &str| {
            let cli = Cli::try_parse_from(url_first(line.split_whitespace().map(OsString::from))).unwrap();
            let server = match cli.command {
                Command::Server(ServerCommand::Add(new)) => new.url.map(|url| url.to_string()),
                _ => None,
            };
            (cli.url, server)
        };
        let (c, s) = (Some("https://c".to_owned()), Some("wss://s/".to_owned()));
        for line in [
            "ctl --url https://c network list",
            "ctl network --url https://c list",
            "ctl network list --url https://c",
            "ctl network list --url=https://c --json",
            "ctl --db x network list --url https://c",
            "ctl node rename server add --url https://c",
            "ctl login --url https://c --username u",
        ] {
            assert_eq!(url(line), (c.clone(), None), "{line}");
        }
        assert_eq!(url("ctl server add --name n --url wss://s"), (None, s.clone()));
        assert_eq!(url("ctl --url https://c server add --name n --url wss://s"), (c.clone(), s));
        assert_eq!(url("ctl server --url https://c list"), (c, None));
        let socket = |line: &str| Cli::try_parse_from(url_first(line.split(' ').map(OsString::from))).unwrap().socket;
        for line in [
            "ctl --socket /s network list",
            "ctl network list --socket=/s",
            "ctl network --socket /s list --url https://c",
        ] {
            assert_eq!(socket(line), Some(Some("/s".into())), "{line}");
        }
        assert_eq!(socket("ctl --socket network list"), Some(None));
        assert_eq!(socket("ctl network list --socket"), Some(None));
        assert_eq!(socket("ctl network list"), None);
        let unfinished = ["ctl", "network", "list", "--url"].map(OsString::from);
        assert!(Cli::try_parse_from(url_first(unfinished)).is_err());
    }
}
