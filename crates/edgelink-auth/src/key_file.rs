//! The machine key's file as text (JSON). Reading and writing it with mode 0600 is the shell's task.

use crate::MachineKey;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    version: u32,
    machine_key: String,
    machine_public: String,
    seq_floor: u64,
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        self.machine_key.zeroize();
    }
}

/// The file's text: the key's seed (base64), its public half (hex, for people), and the highest statement sequence
/// number that may have been used.
pub fn encode(key: &MachineKey, seq_floor: u64) -> Zeroizing<String> {
    let file = KeyFile {
        version: VERSION,
        machine_key: STANDARD.encode(key.seed().as_slice()),
        machine_public: key.public().to_string(),
        seq_floor,
    };
    // Serialising two numbers and two strings into memory cannot fail.
    let mut text = Zeroizing::new(serde_json::to_string_pretty(&file).unwrap_or_default());
    text.push('\n');
    text
}

/// The key and the sequence floor.
///
/// # Errors
/// See [`KeyFileError`]; none of them quotes the file.
pub fn decode(text: &str) -> Result<(MachineKey, u64), KeyFileError> {
    let file: KeyFile = serde_json::from_str(text)
        .map_err(|error| KeyFileError::Syntax { line: error.line(), column: error.column() })?;
    if file.version != VERSION {
        return Err(KeyFileError::Version(file.version));
    }
    let mut seed = Zeroizing::new([0; 32]);
    // `decode_slice` wants room for the estimate, which is a byte more than a seed.
    let mut room = Zeroizing::new([0; 33]);
    let len = STANDARD.decode_slice(&file.machine_key, room.as_mut()).map_err(|_| KeyFileError::Key)?;
    if len != seed.len() {
        return Err(KeyFileError::Key);
    }
    seed.copy_from_slice(room.first_chunk::<32>().ok_or(KeyFileError::Key)?);
    let key = MachineKey::from_seed(*seed);
    if key.public().to_string() != file.machine_public {
        return Err(KeyFileError::Mismatch);
    }
    Ok((key, file.seq_floor))
}

/// Why a key file is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// Not JSON, or with missing, unknown or ill-typed keys.
    #[error(
        "it is not a machine key file (line {line}, column {column}); restore it from a backup, or move it away to become a new node"
    )]
    Syntax {
        /// Line of the first error, from 1.
        line: usize,
        /// Its column, from 1.
        column: usize,
    },
    /// Written by a newer version.
    #[error("it has version {0}, this program knows version 1; upgrade edgelink")]
    Version(u32),
    /// The seed is not 32 bytes of base64.
    #[error("its machine_key is not 32 bytes of base64; restore the file from a backup")]
    Key,
    /// The public half does not belong to the private one.
    #[error("its machine_public does not belong to its machine_key: the file is damaged; restore it from a backup")]
    Mismatch,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let key = MachineKey::from_seed([9; 32]);
        let (back, floor) = decode(&encode(&key, 1_700_000_000_123)).unwrap();
        assert_eq!((back.public(), floor), (key.public(), 1_700_000_000_123));
    }

    #[test]
    fn every_truncation_is_refused() {
        let text = encode(&MachineKey::from_seed([9; 32]), 5);
        // The last two characters are the brace and a newline.
        for len in 0..text.len() - 1 {
            assert!(decode(&text[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn damage_is_named_and_never_quoted() {
        let text = encode(&MachineKey::from_seed([9; 32]), 5);
        let edit = |from: &str, to: &str| decode(&text.replace(from, to)).map(|_| ()).unwrap_err();
        assert_eq!(edit("\"version\": 1", "\"version\": 2"), KeyFileError::Version(2));
        assert_eq!(edit("CQkJ", "!!!!"), KeyFileError::Key);
        assert_eq!(edit("CQkJCQkJ", ""), KeyFileError::Key);
        assert_eq!(edit("CQkJCQkJCQkJ", "CQkJCQkJCQkK"), KeyFileError::Mismatch);
        let unknown = edit("\"version\"", "\"CQkJ\": 3, \"version\"");
        assert!(matches!(unknown, KeyFileError::Syntax { .. }));
        assert!(!unknown.to_string().contains("CQkJ"));
    }
}
