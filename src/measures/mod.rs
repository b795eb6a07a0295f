//! What a node measures where it happens, for the feature `metrics`. Without it nothing is measured, and nothing of this is
//! there: the same names do nothing.

#[cfg(feature = "metrics")]
mod clocks;
#[cfg(feature = "metrics")]
mod histogram;
#[cfg(feature = "metrics")]
mod measured;
#[cfg(not(feature = "metrics"))]
mod unmeasured;

#[cfg(feature = "metrics")]
pub(crate) use self::measured::{Measured, Measures, Sample, Since};
#[cfg(not(feature = "metrics"))]
pub(crate) use self::unmeasured::{Measures, Since};
