//! Queue disciplines: [`Codel`] (RFC 8289) tells a standing queue from a burst, [`FairQueue`] (RFC 8290) keeps flows from
//! each other. No clock: the present is an argument.

mod codel;
mod fair;

pub use codel::{Codel, CodelParams, FLOOR};
pub use fair::{FLOWS, FairParams, FairQueue, Reason};
