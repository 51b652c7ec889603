//! What a running program uses and holds, from `/proc`.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};

use crate::Process;

const CHUNK: usize = 1 << 20;

impl Process {
    /// Processor time used so far by all its threads, in user and kernel mode.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(self.proc("stat")).with_context(|| format!("{} has ended", self.name()))?;
        // After the command's name, which may hold anything, come the fields from the third on; 14 and 15 are wanted.
        let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
        let ticks: Option<u64> = fields.map(|field| field.parse::<u64>().ok()).sum();
        let ticks = ticks.ok_or_else(|| anyhow!("{}: unexpected {stat:?}", self.name()))?;
        // SAFETY: a library call without pointers.
        let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) })?;
        Ok(Duration::from_millis(ticks * 1000 / per_second))
    }

    /// Resident memory, in bytes.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(self.proc("status")).with_context(|| format!("{} has ended", self.name()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        Ok(kib.with_context(|| format!("{}: no VmRSS", self.name()))? * 1024)
    }

    /// Whether these bytes are anywhere in its readable memory now.
    ///
    /// # Errors
    ///
    /// When it has ended or may not be looked into.
    pub fn memory_contains(&self, needle: &[u8]) -> Result<bool> {
        let memory = self.memory()?;
        let mut looked = 0;
        for (start, end) in self.regions("r")? {
            let (found, read) = region_contains(&memory, start, end, needle);
            if found {
                return Ok(true);
            }
            looked += read;
        }
        if looked == 0 {
            return Err(anyhow!("nothing of {} could be read", self.name()));
        }
        Ok(false)
    }

    /// Its writable memory now, as a debugger would see it: each mapping's address and bytes.
    ///
    /// # Errors
    ///
    /// When it has ended or may not be looked into.
    pub fn writable_memory(&self) -> Result<Vec<(u64, Vec<u8>)>> {
        let memory = self.memory()?;
        let mut found = Vec::new();
        for (start, end) in self.regions("rw")? {
            let mut bytes = vec![0; usize::try_from(end - start)?];
            // Some mappings (devices, `[vvar]`) cannot be read.
            if memory.read_exact_at(&mut bytes, start).is_ok() {
                found.push((start, bytes));
            }
        }
        if found.is_empty() {
            return Err(anyhow!("nothing of {} could be read", self.name()));
        }
        Ok(found)
    }

    fn memory(&self) -> Result<File> {
        File::open(self.proc("mem")).with_context(|| format!("cannot look into {}", self.name()))
    }

    /// The mappings whose rights begin so, as start and end.
    fn regions(&self, rights: &str) -> Result<Vec<(u64, u64)>> {
        let maps = fs::read_to_string(self.proc("maps")).with_context(|| format!("{} has ended", self.name()))?;
        let mut regions = Vec::new();
        for map in maps.lines() {
            let mut words = map.split_whitespace();
            let (Some(range), Some(has)) = (words.next(), words.next()) else { continue };
            let Some((start, end)) = range.split_once('-').filter(|_| has.starts_with(rights)) else { continue };
            regions.push((u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?));
        }
        Ok(regions)
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.pid())
    }
}

/// Looks through one mapping in pieces that overlap by the length of the needle; also returns how much was read, since
/// some mappings (devices, `[vvar]`) cannot be.
fn region_contains(memory: &File, start: u64, end: u64, needle: &[u8]) -> (bool, usize) {
    let mut piece = Vec::new();
    let (mut at, mut total) = (start, 0);
    while at < end && !needle.is_empty() {
        let kept = piece.len().min(needle.len() - 1);
        piece.drain(..piece.len() - kept);
        let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        piece.resize(kept + wanted, 0);
        let Some(read) = piece.get_mut(kept..).and_then(|room| memory.read_at(room, at).ok()).filter(|n| *n > 0) else {
            break;
        };
        piece.truncate(kept + read);
        total += read;
        at += read as u64;
        if memchr::memmem::find(&piece, needle).is_some() {
            return (true, total);
        }
    }
    (false, total)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_needle_across_two_pieces_is_found() {
        let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("edgelink-mem-XXXXXX")).unwrap();
        let path = dir.join("memory");
        let mut file = File::create(&path).unwrap();
        let mut bytes = vec![b'.'; 3 * CHUNK];
        bytes[CHUNK - 3..CHUNK + 3].copy_from_slice(b"needle");
        file.write_all(&bytes).unwrap();
        let memory = File::open(&path).unwrap();
        fs::remove_dir_all(dir).unwrap();
        let end = 3 * CHUNK as u64;
        assert!(region_contains(&memory, 0, end, b"needle").0);
        assert_eq!(region_contains(&memory, 0, end, b"needles"), (false, 3 * CHUNK));
        assert!(!region_contains(&memory, CHUNK as u64, end, b"needle").0, "cut off");
        assert!(!region_contains(&memory, 0, end, b"").0);
    }
}
