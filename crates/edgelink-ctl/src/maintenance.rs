//! `db`: looking after the database itself.

use crate::error::CtlError;
use crate::output::Output;
use clap::Subcommand;
use edgelink_store::{Report, Store};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum DbCommand {
    /// Copy the database as it is now, whoever is writing to it meanwhile
    Backup {
        /// Where the copy goes: a file that does not exist. It holds keys, and is made readable by you only
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Look for damage: pages, references, schema, change log, rows. Nothing is changed
    Check,
}

/// What `db backup --json` prints.
#[derive(Serialize)]
struct Backup<'a> {
    file: &'a str,
    bytes: u64,
}

/// What `db check --json` prints.
#[derive(Serialize)]
struct Checked<'a> {
    ok: bool,
    database: String,
    /// The schema's migrations, oldest first.
    schema: &'a [String],
    /// Newest change.
    config_version: u64,
    checks: Vec<CheckedPart<'a>>,
}

#[derive(Serialize)]
struct CheckedPart<'a> {
    name: &'a str,
    ok: bool,
    problems: &'a [String],
}

pub(crate) async fn execute(store: &Store, command: &DbCommand, out: &mut Output<'_>) -> Result<(), CtlError> {
    match command {
        DbCommand::Backup { file } => {
            store.backup_to(file).await?;
            let bytes = std::fs::metadata(file)?.len();
            let shown = file.display().to_string();
            if out.json {
                return out.json(&Backup { file: &shown, bytes });
            }
            let how = match store.location().is_shared() {
                true => format!("; restore it with: mariadb DATABASE < {shown}"),
                false => "; to restore it, stop the controller and put it in the database's place".to_owned(),
            };
            out.remark(&format!("{shown}: {bytes} bytes{how}"))
        }
        DbCommand::Check => {
            let report = store.check().await?;
            print(&report, store, out)?;
            if report.is_sound() { Ok(()) } else { Err(CtlError::Unsound) }
        }
    }
}

fn print(report: &Report, store: &Store, out: &mut Output<'_>) -> Result<(), CtlError> {
    if out.json {
        let checks = report
            .checks
            .iter()
            .map(|c| CheckedPart { name: c.name, ok: c.problems.is_empty(), problems: &c.problems })
            .collect();
        return out.json(&Checked {
            ok: report.is_sound(),
            database: store.location().to_string(),
            schema: &report.schema,
            config_version: report.version,
            checks,
        });
    }
    let schema = report.schema.last().map_or("-", String::as_str);
    let mut fields = vec![
        ("database", store.location().to_string()),
        ("schema", format!("{schema} ({})", report.schema.len())),
        ("config version", report.version.to_string()),
    ];
    for check in &report.checks {
        let name = match check.name {
            "foreign_keys" => "references",
            "change_log" => "change log",
            other => other,
        };
        fields.push((name, if check.problems.is_empty() { "ok".to_owned() } else { check.problems.join("; ") }));
    }
    out.fields(&fields)
}
