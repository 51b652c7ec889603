//! Ready-made networks.

mod internet;
mod tcp_only;

pub use internet::{Internet, Site, SitePlan, Uplink, UplinkPlan};
pub use tcp_only::TcpOnly;
