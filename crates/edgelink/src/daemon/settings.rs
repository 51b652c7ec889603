//! The configuration file in the terms of the core and of the kernel.

use super::kernel::GatewaySettings;
use super::tunnel::RouteSettings;
use edgelink_config::{ClientConfig, RouteChoice};
use edgelink_model::records::AnnouncedRoute;
use edgelink_node::{RouteFilter, RoutingConfig};

/// What the configuration says of routes and gateways.
pub(super) fn routes(config: &ClientConfig) -> RouteSettings {
    let mode = &config.gateway_mode;
    let filters = |choices: &[RouteChoice]| {
        let filter = |choice: &RouteChoice| RouteFilter { cidr: choice.cidr, gateway: choice.gateway.clone() };
        choices.iter().map(filter).collect()
    };
    // Without gateway mode somebody else forwards for us, and we cannot know how: as if sources were rewritten.
    let snat = mode.snat || !mode.enabled;
    let advertise = config.advertise_routes.iter().map(|route| AnnouncedRoute {
        cidr: route.cidr,
        priority: route.priority,
        weight: route.weight,
        snat,
    });
    RouteSettings {
        routing: RoutingConfig {
            accept: config.accept_routes,
            advertise: advertise.collect(),
            gateway: mode.enabled,
            prefer: filters(&config.routes.prefer),
            deny: filters(&config.routes.deny),
        },
        gateway: mode.enabled.then(|| GatewaySettings {
            snat: mode.snat,
            lan_interface: mode.lan_interface.as_ref().map(|name| name.as_str().to_owned()),
        }),
        health_target: mode.health_target,
    }
}
