//! Draws that are the same on every machine.

use rand_core::Rng;
use std::time::Duration;

/// True with `probability` (clamped to 0..=1; NaN is never). Draws nothing when the outcome is certain.
pub(super) fn chance(probability: f64, rng: &mut impl Rng) -> bool {
    if probability >= 1.0 {
        return true;
    }
    if probability > 0.0 { unit(rng) < probability } else { false }
}

/// Uniform in 0..=`limit`. Draws nothing when `limit` is zero.
pub(super) fn up_to(limit: Duration, rng: &mut impl Rng) -> Duration {
    if limit.is_zero() { limit } else { limit.mul_f64(unit(rng)) }
}

/// Uniform in 0..`n`, 0 when `n` is 0. The bias is below 2⁻³², which no simulation can see.
pub(super) fn below(n: u32, rng: &mut impl Rng) -> u32 {
    ((rng.next_u64() >> 32).wrapping_mul(u64::from(n)) >> 32) as u32
}

/// Uniform in 0..1 with 53 bits.
fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}
