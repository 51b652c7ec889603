//! Pre-auth keys for enrolment (DESIGN §3): `elk_` and 160 random bits. The controller stores only the hash.

use rand_core::Rng;
use zeroize::Zeroizing;

/// Begins every pre-auth key, so that people and secret scanners recognise one.
pub const PREFIX: &str = "elk_";

/// A new key; `rng` must be cryptographically secure.
pub fn generate(rng: &mut (impl Rng + ?Sized)) -> String {
    let mut bytes = Zeroizing::new([0; 20]);
    rng.fill_bytes(bytes.as_mut());
    format!("{PREFIX}{}", hex::encode(bytes.as_slice()))
}

/// Lower-case hex SHA-256 of the key without surrounding white space. The key has 160 bits of entropy, so that a plain
/// hash serves: there is nothing to guess.
pub fn hash(key: &str) -> String {
    hex::encode(crate::sha256(key.trim().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    #[test]
    fn keys_differ_and_have_the_documented_form() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let (a, b) = (generate(&mut rng), generate(&mut rng));
        assert_ne!(a, b);
        for key in [a, b] {
            assert_eq!(key.len(), 44);
            assert!(key.strip_prefix("elk_").unwrap().bytes().all(|b| b.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn hash_is_sha256_and_forgives_a_pasted_newline() {
        // printf elk_test | sha256sum
        assert_eq!(hash("elk_test"), hash(" elk_test\n"));
        assert_eq!(hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
