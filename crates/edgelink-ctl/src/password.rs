//! Where a new password comes from.

use crate::args::PasswordArgs;
use crate::error::CtlError;
use edgelink_api::Secret;
use edgelink_config::Env;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

/// Holds a password, for scripts.
pub(crate) const VARIABLE: &str = "EDGELINK_PASSWORD";

/// A password, and whether it was made here, so that it must be told.
pub(crate) struct Password {
    pub(crate) secret: Secret,
    pub(crate) made: bool,
}

/// From standard input if that is wanted, else from the environment, else from the person at the terminal, who types it
/// twice; without a terminal one is made.
pub(crate) fn new(args: &PasswordArgs, env: &Env) -> Result<Password, CtlError> {
    let given = |secret| Ok(Password { secret, made: false });
    if args.password_stdin {
        return given(first_line()?);
    }
    if let Some(password) = env.get(VARIABLE) {
        return given(Secret::new(password));
    }
    if !io::stdin().is_terminal() {
        return Ok(Password { secret: make()?, made: true });
    }
    let first = ask("Password: ")?;
    if ask("Again: ")?.expose() != first.expose() {
        return Err(CtlError::Usage("the two passwords differ".into()));
    }
    given(first)
}

/// An existing password: from the environment, or from the person at the terminal.
pub(crate) fn existing(env: &Env, prompt: &str) -> Result<Secret, CtlError> {
    if let Some(password) = env.get(VARIABLE) {
        return Ok(Secret::new(password));
    }
    if io::stdin().is_terminal() { ask(prompt) } else { first_line() }
}

/// The present password of a person at the terminal.
pub(crate) fn present(prompt: &str) -> Result<Secret, CtlError> {
    if io::stdin().is_terminal() { ask(prompt) } else { first_line() }
}

fn first_line() -> Result<Secret, CtlError> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(CtlError::Usage(format!("there is no password on standard input (nor in {VARIABLE})")));
    }
    Ok(Secret::new(password))
}

/// 120 random bits.
fn make() -> Result<Secret, CtlError> {
    let mut bytes = [0; 15];
    getrandom::fill(&mut bytes)?;
    Ok(Secret::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// Without an echo.
fn ask(prompt: &str) -> Result<Secret, CtlError> {
    let stdin = io::stdin();
    let _ = write!(io::stderr(), "{prompt}");
    let before = tcgetattr(&stdin).map_err(io::Error::from)?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent).map_err(io::Error::from)?;
    let line = first_line();
    let restored = tcsetattr(&stdin, SetArg::TCSAFLUSH, &before).map_err(io::Error::from);
    let _ = writeln!(io::stderr());
    restored?;
    line
}
