//! Configuration files and variables: every error says where and which key; warnings and errors hold no secret.

use crate::input::{Input, chunk};
use edgelink_config::{
    ClientConfig, Config, ConfigError, ControllerConfig, Env, Program, ServerConfig, parse, starter,
};
use std::path::Path;
use std::sync::LazyLock;

const FILE: &str = "fuzzed.json";

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let examples = [
        include_str!("../../../config/controller.example.json"),
        include_str!("../../../config/server.example.json"),
        include_str!("../../../config/client.example.json"),
    ];
    let mut seeds = Vec::new();
    let starters = [starter::<ControllerConfig>(), starter::<ServerConfig>(), starter::<ClientConfig>()];
    for (n, (example, starter)) in examples.into_iter().zip(&starters).enumerate() {
        for text in [example, starter, "", "{}"] {
            seeds.push([&[n as u8, 0], text.as_bytes()].concat());
        }
        let variables = [(3, "true"), (5, "12"), (9, "a,b"), (200, "{\"x\": 1}")];
        let variables: Vec<u8> =
            variables.iter().flat_map(|(at, value)| [vec![0, *at], chunk(value.as_bytes())].concat()).collect();
        seeds.push([&[n as u8, 4][..], &variables, b"// nothing"].concat());
    }
    seeds
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    match input.u8() % 3 {
        0 => check::<ControllerConfig>(input),
        1 => check::<ServerConfig>(input),
        _ => check::<ClientConfig>(input),
    }
}

static VARIABLES: LazyLock<Vec<String>> =
    LazyLock::new(|| Program::ALL.into_iter().flat_map(Program::variables).collect());

fn check<T: Config>(mut input: Input<'_>) {
    let mut variables = Vec::new();
    for _ in 0..input.u8() % 8 {
        let name = VARIABLES[usize::from(input.u16()) % VARIABLES.len()].clone();
        // A name one letter off too, now and then.
        let name = if input.0.first() == Some(&b'!') { format!("{name}X") } else { name };
        let value = String::from_utf8_lossy(input.chunk()).replace('\0', "");
        variables.push((name, value));
    }
    let env = Env::new(variables);
    let text = String::from_utf8_lossy(input.0);
    let read = parse::<T>(Path::new(FILE), &text, &env);
    match &read {
        Ok(config) => match config.validate() {
            Ok(warnings) => assert!(warnings.iter().all(|warning| !warning.is_empty())),
            Err(error) => names_its_place(&error),
        },
        Err(error) => names_its_place(error),
    }
    assert_eq!(
        parse::<T>(Path::new(FILE), &text, &env).err().map(|e| e.to_string()),
        read.err().map(|e| e.to_string())
    );
}

/// The file or the variable, and the key where there is one.
fn names_its_place(error: &ConfigError) {
    let text = error.to_string();
    assert!(!text.chars().any(char::is_control), "{text:?}");
    let place = text.contains(FILE) || text.contains("environment variable");
    match error {
        ConfigError::Syntax { .. } | ConfigError::UnknownVariable { .. } => assert!(place, "{text}"),
        ConfigError::DuplicateKey { key, .. }
        | ConfigError::UnknownKey { key, .. }
        | ConfigError::MissingKey { key, .. }
        | ConfigError::WrongValue { key, .. } => {
            let printable = !key.chars().any(char::is_control);
            assert!(place && (!printable || text.contains(key)), "{text}");
        }
        ConfigError::Unusable { key, .. } => assert!(!key.is_empty() && text.contains(key), "{text}"),
        ConfigError::Read { .. } | ConfigError::NotInDatabase { .. } => panic!("nothing was read, and no database"),
    }
}
