//! Tables for people, JSON for scripts.

use crate::error::CtlError;
use serde::Serialize;
use std::io::{self, Write};

pub(crate) struct Output<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    quiet: bool,
    pub(crate) json: bool,
}

impl<'a> Output<'a> {
    pub(crate) fn new(out: &'a mut dyn Write, err: &'a mut dyn Write, quiet: bool, json: bool) -> Self {
        Self { out, err, quiet, json }
    }

    /// Prints `value`.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), CtlError> {
        serde_json::to_writer_pretty(&mut *self.out, value)
            .map_err(|e| if e.is_io() { CtlError::Output(e.into()) } else { e.into() })?;
        Ok(writeln!(self.out)?)
    }

    /// Prints `rows` under `header`, in columns; nothing at all without rows.
    pub(crate) fn table<const N: usize>(&mut self, header: [&str; N], rows: &[[String; N]]) -> Result<(), CtlError> {
        if rows.is_empty() {
            return Ok(());
        }
        let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| printable(cell))).collect();
        let mut widths = header.map(width);
        for row in &rows {
            for (column, cell) in widths.iter_mut().zip(row) {
                *column = (*column).max(width(cell));
            }
        }
        let mut line = |cells: [&str; N]| {
            let mut text = String::new();
            for (cell, column) in cells.iter().zip(widths) {
                text.push_str(cell);
                text.extend(std::iter::repeat_n(' ', column - width(cell) + 2));
            }
            writeln!(self.out, "{}", text.trim_end())
        };
        line(header)?;
        for row in &rows {
            line(row.each_ref().map(String::as_str))?;
        }
        Ok(())
    }

    /// Prints one thing's fields, one a line.
    pub(crate) fn fields(&mut self, fields: &[(&str, String)]) -> Result<(), CtlError> {
        let longest = fields.iter().map(|(name, _)| width(name)).max().unwrap_or_default();
        for (name, value) in fields {
            let gap = " ".repeat(longest - width(name) + 2);
            writeln!(self.out, "{}", format!("{name}:{gap}{}", printable(value)).trim_end())?;
        }
        Ok(())
    }

    /// Prints a result that is one word.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), CtlError> {
        Ok(writeln!(self.out, "{text}")?)
    }

    /// Prints a generated file as it is.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<(), CtlError> {
        Ok(self.out.write_all(bytes)?)
    }

    /// Tells a person what was done, or what to do next.
    pub(crate) fn remark(&mut self, text: &str) -> Result<(), CtlError> {
        if !self.quiet && !self.json {
            writeln!(self.err, "{}", printable(text))?;
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Errors are told even quietly.
    pub(crate) fn error(&mut self, error: &CtlError) {
        // Nobody is left to tell when this fails.
        let _ = writeln!(self.err, "edgelink-ctl: {}", printable(&error.to_string()));
    }
}

/// Control characters, which could move a terminal's cursor, made visible.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Columns that a terminal gives to `text`: two for each East Asian wide character.
fn width(text: &str) -> usize {
    let wide = |c: char| {
        matches!(c as u32,
            0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f | 0xff00..=0xff60
            | 0xffe0..=0xffe6 | 0x1f300..=0x1faff | 0x20000..=0x3fffd)
    };
    text.chars().map(|c| if wide(c) { 2 } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[[&str; 3]]) -> String {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let rows: Vec<[String; 3]> = rows.iter().map(|r| r.map(str::to_owned)).collect();
        Output::new(&mut out, &mut err, false, false).table(["ID", "NAME", "OS"], &rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_aligned_for_wide_characters_too() {
        assert_eq!(
            table(&[["1", "web", "linux"], ["12", "网络", ""], ["3", "a\u{1b}[2J", "x"]]),
            "ID  NAME   OS\n1   web    linux\n12  网络\n3   a\u{fffd}[2J  x\n"
        );
        assert_eq!(table(&[]), "");
    }
}
