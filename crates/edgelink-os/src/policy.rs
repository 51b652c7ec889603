//! Routes that must not catch the tunnel's own traffic: default routes, and subnets that hold the address of the
//! controller, a relay or a STUN server (DESIGN §7).
//!
//! They live in a table of their own, with exceptions (`throw`) for those addresses, and two rules lead there: first
//! what the main table knows better than by its default route, then, for sockets without our mark, our table. So
//! connected networks and foreign routes keep their precedence, and nothing need be known of the underlying gateway.
//! Rules and routes carry our protocol number, tables and priorities the interface's index: several daemons do not get
//! in each other's way, and what a killed one leaves is recognised.

use crate::net::{NetError, Netlink, ROUTE_PROTOCOL, collect, destination_of, ignore, refused};
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `SO_MARK` of the tunnel's own sockets.
pub const MARK: u32 = 0xed6e;
/// Our tables are this plus the interface's index.
const TABLES: u32 = 237_000_000;
/// Our rules' priorities begin here: before the main table's 32766.
const PRIORITIES: u32 = 10_000;

/// An entry of our table: through the tunnel, or an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    destination: IpNet,
    throw: bool,
}

impl Netlink {
    /// Makes our table for an interface hold exactly these routes, except for these addresses. Without routes there are
    /// no rules either.
    ///
    /// # Errors
    /// At the first refusal; calling again completes what is missing.
    pub async fn set_policy_routes(&self, index: u32, routes: &[IpNet], except: &[IpAddr]) -> Result<(), NetError> {
        for v4 in [true, false] {
            let ours = |net: &&IpNet| matches!(net, IpNet::V4(_)) == v4;
            let routes: BTreeSet<IpNet> = routes.iter().filter(ours).map(IpNet::trunc).collect();
            let mut wanted: BTreeSet<Entry> = BTreeSet::new();
            for address in except.iter().filter(|a| a.is_ipv4() == v4) {
                if routes.iter().any(|route| route.contains(address)) {
                    wanted.insert(Entry { destination: IpNet::from(*address), throw: true });
                }
            }
            for destination in routes {
                // A route that is nothing but an exception does not exist.
                if !wanted.contains(&Entry { destination, throw: true }) {
                    wanted.insert(Entry { destination, throw: false });
                }
            }
            self.set_family(index, v4, &wanted).await?;
        }
        Ok(())
    }

    /// Removes what killed daemons left: rules and exceptions of interfaces that are gone. Returns how many things.
    ///
    /// # Errors
    /// At the first refusal.
    pub async fn remove_policy_leftovers(&self) -> Result<usize, NetError> {
        let alive = self.tun_indices().await?;
        let gone = |table: u32| table.checked_sub(TABLES).is_some_and(|index| index > 0 && !alive.contains(&index));
        let mut removed = 0;
        for v4 in [true, false] {
            for rule in self.own_rules(v4).await? {
                if rule_owner(&rule).is_some_and(gone) {
                    self.delete_rule(rule).await?;
                    removed += 1;
                }
            }
            for route in self.all_routes(v4).await? {
                if is_ours(&route) && gone(table_of(&route)) {
                    self.delete_message(route).await?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    async fn set_family(&self, index: u32, v4: bool, wanted: &BTreeSet<Entry>) -> Result<(), NetError> {
        let table = TABLES + index;
        let rules: Vec<RuleMessage> =
            self.own_rules(v4).await?.into_iter().filter(|rule| rule_owner(rule) == Some(table)).collect();
        if wanted.is_empty() {
            for rule in rules.clone() {
                self.delete_rule(rule).await?;
            }
        }
        let mut present = BTreeSet::new();
        for route in self.all_routes(v4).await? {
            if !is_ours(&route) || table_of(&route) != table {
                continue;
            }
            let entry = destination_of(&route)
                .map(|destination| Entry { destination, throw: route.header.kind == RouteType::Throw });
            match entry.filter(|entry| wanted.contains(entry)) {
                Some(entry) => {
                    present.insert(entry);
                }
                None => self.delete_message(route).await?,
            }
        }
        // Exceptions first: not one packet of the tunnel's own may enter it.
        let missing = |throw| wanted.difference(&present).filter(move |entry| entry.throw == throw);
        for entry in missing(true).chain(missing(false)) {
            let added = self.handle.route().add(entry_message(index, *entry)).execute().await;
            ignore(added, libc::EEXIST).map_err(|e| refused(e, || format!("add route {}", entry.destination)))?;
        }
        if !wanted.is_empty() && rules.len() < 2 {
            for rule in [main_first(index, v4), then_ours(index, v4)] {
                let mut request = self.handle.rule().add();
                *request.message_mut() = rule;
                let added = request.execute().await;
                ignore(added, libc::EEXIST).map_err(|e| refused(e, || "add a routing rule".to_owned()))?;
            }
        }
        Ok(())
    }

    async fn own_rules(&self, v4: bool) -> Result<Vec<RuleMessage>, NetError> {
        let family = if v4 { IpVersion::V4 } else { IpVersion::V6 };
        let mut rules = collect(self.handle.rule().get(family).execute(), "list routing rules").await?;
        rules.retain(|rule| rule.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL))));
        Ok(rules)
    }

    async fn delete_rule(&self, rule: RuleMessage) -> Result<(), NetError> {
        let deleted = self.handle.rule().del(rule).execute().await;
        ignore(deleted, libc::ENOENT).map_err(|e| refused(e, || "remove a routing rule".to_owned()))
    }

    async fn delete_message(&self, route: RouteMessage) -> Result<(), NetError> {
        let deleted = self.handle.route().del(route).execute().await;
        ignore(deleted, libc::ESRCH).map_err(|e| refused(e, || "remove a route".to_owned()))
    }
}

fn entry_message(index: u32, entry: Entry) -> RouteMessage {
    let protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    let table = TABLES + index;
    let kind = if entry.throw { RouteType::Throw } else { RouteType::Unicast };
    let mut message = match entry.destination {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .table_id(table)
            .protocol(protocol)
            .kind(kind)
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .table_id(table)
            .protocol(protocol)
            .kind(kind)
            .build(),
    };
    if !entry.throw {
        message.attributes.push(RouteAttribute::Oif(index));
    }
    message
}

/// What the main table knows better than by a default route comes first.
fn main_first(index: u32, v4: bool) -> RuleMessage {
    let mut rule = rule(index, v4, 0);
    rule.header.table = RouteHeader::RT_TABLE_MAIN;
    rule.attributes.push(RuleAttribute::SuppressPrefixLen(0));
    rule
}

fn then_ours(index: u32, v4: bool) -> RuleMessage {
    let mut rule = rule(index, v4, 1);
    rule.header.flags |= RuleFlags::Invert;
    rule.attributes.push(RuleAttribute::FwMark(MARK));
    rule.attributes.push(RuleAttribute::Table(TABLES + index));
    rule
}

fn rule(index: u32, v4: bool, nth: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    rule.header.action = RuleAction::ToTable;
    rule.attributes.push(RuleAttribute::Priority(priorities(index) + nth));
    rule.attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)));
    rule
}

/// The first of an interface's two priorities: its index can be read back from them.
fn priorities(index: u32) -> u32 {
    PRIORITIES + 2 * (index % 10_000)
}

/// The table of the interface that a rule was made for.
fn rule_owner(rule: &RuleMessage) -> Option<u32> {
    let priority = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    })?;
    Some(TABLES + priority.checked_sub(PRIORITIES)? / 2)
}

fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
}

fn table_of(route: &RouteMessage) -> u32 {
    let given = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    given.unwrap_or(route.header.table.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_tells_whose_it_is() {
        for index in [1, 7, 4711] {
            for rule in [main_first(index, true), then_ours(index, false)] {
                assert_eq!(rule_owner(&rule), Some(TABLES + index));
            }
        }
    }
}
