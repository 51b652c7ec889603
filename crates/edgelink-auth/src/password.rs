//! Administrators' passwords: Argon2id (RFC 9106) in PHC strings (DESIGN §3).

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher, PasswordVerifier};

/// Shortest password that is accepted, in characters.
pub const MIN_PASSWORD: usize = 8;
/// Longest password that is looked at, in bytes.
pub const MAX_PASSWORD: usize = 1024;

/// Why a password is refused or cannot be hashed. Nothing of the password is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Fewer than [`MIN_PASSWORD`] characters.
    #[error("the password is too short: it needs at least {MIN_PASSWORD} characters")]
    TooShort,
    /// More than [`MAX_PASSWORD`] bytes.
    #[error("the password is too long: at most {MAX_PASSWORD} bytes")]
    TooLong,
    /// The library refused; does not happen with its own parameters.
    #[error("the password could not be hashed")]
    Hashing,
}

/// Hashes a new password with 19 MiB and two passes (OWASP's first choice for Argon2id, the library's default). Takes
/// some tens of milliseconds: do it off the event loop.
///
/// # Errors
/// [`PasswordError`].
pub fn hash(password: &str, salt: [u8; 16]) -> Result<String, PasswordError> {
    if password.chars().count() < MIN_PASSWORD {
        return Err(PasswordError::TooShort);
    }
    if password.len() > MAX_PASSWORD {
        return Err(PasswordError::TooLong);
    }
    let hash: PasswordHash =
        Argon2::default().hash_password_with_salt(password.as_bytes(), &salt).map_err(|_| PasswordError::Hashing)?;
    Ok(hash.to_string())
}

/// Whether `password` is the one that `phc` was made of. Takes as long as [`hash`], also for an absurd password and,
/// with [`decoy`], for an account that does not exist.
pub fn verify(password: &str, phc: &str) -> bool {
    let fits = password.len() <= MAX_PASSWORD;
    let password = if fits { password } else { "" };
    PasswordHash::new(phc).is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        && fits
}

/// A hash that no password has, to spend the same time on accounts that do not exist.
pub fn decoy() -> &'static str {
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_password_fits() {
        let phc = hash("correct horse", [7; 16]).unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert!(verify("correct horse", &phc));
        for wrong in ["", "correct hors", "correct horse ", "Correct horse", &"x".repeat(MAX_PASSWORD + 1)] {
            assert!(!verify(wrong, &phc), "{wrong}");
        }
        assert_ne!(phc, hash("correct horse", [8; 16]).unwrap());
    }

    #[test]
    fn a_hash_that_nobody_made_is_no_password() {
        for bad in ["", "correct horse", "$argon2id$", "$argon2id$v=19$m=1,t=1,p=1$AAAA$AAAA", decoy()] {
            assert!(!verify("correct horse", bad), "{bad}");
            assert!(!verify("", bad), "{bad}");
        }
        assert!(PasswordHash::new(decoy()).is_ok(), "it must cost as much as a real one");
    }

    #[test]
    fn lengths() {
        assert_eq!(hash("seven77", [0; 16]), Err(PasswordError::TooShort));
        assert_eq!(hash(&"x".repeat(MAX_PASSWORD + 1), [0; 16]), Err(PasswordError::TooLong));
        assert!(hash("四字密码四字密码", [0; 16]).is_ok());
    }
}
