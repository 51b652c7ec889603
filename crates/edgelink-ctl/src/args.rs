//! The command line.

mod order;

pub(crate) use order::url_first;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use edgelink_config::WsUrl;
use edgelink_net::tls::Pin;
use edgelink_store::parse_subnet;
use ipnet::{IpNet, Ipv4Net};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Administer EdgeLink.
#[derive(Debug, Parser)]
#[command(name = "edgelink-ctl", version, arg_required_else_help = true)]
pub struct Cli {
    /// The controller's database [default: edgelink.db here, else the controller's own]
    #[arg(long, value_name = "PATH", global = true)]
    pub(crate) db: Option<PathBuf>,
    /// The controller's configuration file, which names the database
    #[arg(long, value_name = "FILE", global = true, env = "EDGELINK_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Work over the REST API of this controller, such as `https://controller.example.com` (behind `server add` it is the
    /// server's own)
    #[arg(long = "url", id = "controller-url", value_name = "URL", env = "EDGELINK_URL")]
    pub(crate) url: Option<String>,
    /// Work over the REST API of the controller on this host by its Unix socket, as root or as its user, without a login
    /// [default: that of the controller's configuration]
    #[arg(long, value_name = "PATH", global = true, num_args = 0..=1, require_equals = true)]
    pub(crate) socket: Option<Option<PathBuf>>,
    /// With --url: trust exactly the key with this hash, as the controller prints it
    #[arg(long, value_name = "sha256:…", global = true)]
    pub(crate) pin: Option<Pin>,
    /// With --url: trust the CA certificates in this PEM file
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) ca_file: Option<PathBuf>,
    /// Print results only, no remarks
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Print results as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Manage networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Manage nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// Manage relay and STUN servers
    #[command(subcommand)]
    Server(ServerCommand),
    /// Manage subnets behind nodes
    #[command(subcommand)]
    Route(RouteCommand),
    /// Make auth keys, revoke tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Back up and check the database
    #[command(subcommand)]
    Db(crate::maintenance::DbCommand),
    /// Manage administrators of the REST API
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Show and change settings, which the database holds; make a configuration file
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show who did what, to what, from where; the newest first
    Audit(AuditArgs),
    /// Show measured round-trip times and the best paths between nodes
    Latency {
        /// Only this network's nodes (id or name)
        #[arg(long, value_name = "ID|NAME")]
        network: Option<String>,
        /// Best paths only
        #[arg(long)]
        paths: bool,
    },
    /// Show what there is, in numbers
    Status,
    /// Log in to the controller that --url names; the token is kept in ~/.config/edgelink/ctl.json
    Login {
        /// The administrator [default: your user name]; the password comes from EDGELINK_PASSWORD or the terminal
        #[arg(long, value_name = "NAME")]
        username: Option<String>,
    },
    /// Void the token that `login` has kept, and forget it
    Logout,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write manual pages
    Man {
        /// Where to
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show settings, or one
    Show {
        /// Such as tokens.relay_expire_hours
        #[arg(value_name = "KEY")]
        key: Option<String>,
    },
    /// Set a setting; it outranks the configuration file, and is outranked by the environment
    Set {
        /// Such as tokens.relay_expire_hours
        #[arg(value_name = "KEY")]
        key: String,
        /// As in the configuration file; a list between commas
        #[arg(value_name = "VALUE", allow_hyphen_values = true)]
        value: String,
    },
    /// Take a setting away: the configuration file holds again
    Unset {
        /// Such as tokens.relay_expire_hours
        #[arg(value_name = "KEY")]
        key: String,
    },
    /// Print a commented configuration file to start from
    Init,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// Only what this administrator or user did
    #[arg(long, value_name = "NAME")]
    pub(crate) actor: Option<String>,
    /// Only this, such as node.authorize
    #[arg(long, value_name = "ACTION")]
    pub(crate) action: Option<String>,
    /// Only what was done to this, such as node or node:7
    #[arg(long, value_name = "KIND[:ID]", value_parser = parse_target)]
    pub(crate) target: Option<(String, Option<u32>)>,
    /// At most so many lines
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
}

fn parse_target(text: &str) -> Result<(String, Option<u32>), String> {
    match text.split_once(':') {
        None => Ok((text.to_owned(), None)),
        Some((kind, id)) => {
            let id = id.parse().map_err(|_| format!("{id:?} is not an id; write such as node:7"))?;
            Ok((kind.to_owned(), Some(id)))
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// List routes
    List {
        /// Only this network's (id or name)
        #[arg(long, value_name = "ID|NAME")]
        network: Option<String>,
        /// Only this node's (id or name)
        #[arg(long, value_name = "ID|NAME")]
        node: Option<String>,
    },
    /// Add a route to a subnet behind a node
    Add {
        /// The subnet, such as 192.168.1.0/24
        #[arg(long, value_name = "CIDR")]
        cidr: IpNet,
        /// The gateway (id or name)
        #[arg(long, value_name = "ID|NAME")]
        node: String,
        /// The network (id or name) to look for the gateway's name in
        #[arg(long, value_name = "ID|NAME")]
        network: Option<String>,
        /// 0 to 65535; of several gateways those with the highest are used
        #[arg(long, value_name = "N", default_value_t = 100)]
        priority: u16,
        /// 1 to 65535; the share among gateways of equal priority
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
        weight: u16,
        /// Have it wait for `route enable`
        #[arg(long)]
        disabled: bool,
    },
    /// Change a route's priority or weight
    Update {
        #[command(flatten)]
        route: RouteRef,
        /// 0 to 65535
        #[arg(long, value_name = "N")]
        priority: Option<u16>,
        /// 1 to 65535
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        weight: Option<u16>,
    },
    /// Approve a route: from now on it is used
    #[command(visible_alias = "approve")]
    Enable(RouteRef),
    /// Withdraw a route; it stays on record
    Disable(RouteRef),
    /// Delete a route
    Delete(RouteRef),
}

#[derive(Debug, Args)]
pub(crate) struct RouteRef {
    /// The route's id; `route list` shows it
    #[arg(value_name = "ID")]
    pub(crate) route: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// List administrators
    List,
    /// Make an administrator; the password comes from EDGELINK_PASSWORD, --password-stdin or the terminal, else one is
    /// made and printed
    Create {
        /// Unique name: letters, digits, '.', '_', '-'
        #[arg(long, value_name = "NAME")]
        username: String,
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// Show an administrator
    Show(AdminRef),
    /// Give an administrator another password, which ends his sessions
    Passwd {
        #[command(flatten)]
        admin: AdminRef,
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// Let an administrator log in again
    Enable(AdminRef),
    /// Bar an administrator and end his sessions
    Disable(AdminRef),
    /// Delete an administrator and end his sessions
    Delete(AdminRef),
}

#[derive(Debug, Args)]
pub(crate) struct PasswordArgs {
    /// Read the password from the first line of standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AdminRef {
    /// The administrator's id or name
    #[arg(value_name = "ID|NAME")]
    pub(crate) admin: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// List networks
    List,
    /// Make a network
    Create {
        /// Unique name: letters, digits, '.', '_', '-'
        #[arg(long)]
        name: String,
        /// Where node addresses come from, such as 10.100.0.0/16
        #[arg(long, value_name = "CIDR", value_parser = |s: &str| parse_subnet(s))]
        subnet: Ipv4Net,
        /// Free text
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// Show a network
    Show {
        #[command(flatten)]
        network: NetworkRef,
    },
    /// Change a network
    Update {
        #[command(flatten)]
        network: NetworkRef,
        /// Another name
        #[arg(long)]
        name: Option<String>,
        /// Another subnet, which must hold every address that a node has
        #[arg(long, value_name = "CIDR", value_parser = |s: &str| parse_subnet(s))]
        subnet: Option<Ipv4Net>,
        /// Another text
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// Delete a network that has no nodes
    Delete {
        #[command(flatten)]
        network: NetworkRef,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NetworkRef {
    /// The network's id or name
    #[arg(value_name = "ID|NAME")]
    pub(crate) network: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List nodes
    List {
        /// Only this network's (id or name)
        #[arg(long, value_name = "ID|NAME")]
        network: Option<String>,
        /// Only those that are connected
        #[arg(long)]
        online: bool,
    },
    /// Show a node
    Show(NodeRef),
    /// Let a node join, with an address of its network
    Authorize(NodeRef),
    /// Bar a node and revoke its tokens
    Deauthorize(NodeRef),
    /// Give a node another name
    Rename {
        #[command(flatten)]
        node: NodeRef,
        /// Unique in the network: letters, digits, '.', '_', '-'
        #[arg(value_name = "NEW-NAME")]
        name: String,
    },
    /// Forget a node, free its address and revoke its tokens
    Delete(NodeRef),
}

#[derive(Debug, Args)]
pub(crate) struct NodeRef {
    /// The node's id or name
    #[arg(value_name = "ID|NAME")]
    pub(crate) node: String,
    /// The network (id or name) to look for the name in
    #[arg(long, value_name = "ID|NAME")]
    pub(crate) network: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// List servers
    List,
    /// Show a server
    Show(ServerRef),
    /// Add a server, and print a configuration to paste on it
    Add(Box<NewServerArgs>),
    /// Make another token for a server, and print a configuration to paste on it
    Token {
        #[command(flatten)]
        server: ServerRef,
        #[command(flatten)]
        controller: ControllerUrl,
    },
    /// Forget a server; its token is worth nothing from then on
    #[command(visible_alias = "remove")]
    Delete(ServerRef),
    /// Let nodes use a server again
    Enable(ServerRef),
    /// Take a server away from nodes; it stays connected to the controller
    Disable(ServerRef),
}

#[derive(Debug, Args)]
pub(crate) struct NewServerArgs {
    /// Unique name: letters, digits, '.', '_', '-'
    #[arg(long)]
    pub(crate) name: String,
    /// Where nodes reach it, such as wss://relay1.example.com/ws/data
    #[arg(long, value_name = "URL", value_parser = |s: &str| s.parse::<WsUrl>())]
    pub(crate) url: Option<WsUrl>,
    /// What it does: relay, stun, or both
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',', default_value = "relay")]
    pub(crate) capabilities: Vec<Capability>,
    /// Free text such as asia
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) region: String,
    /// Its public address for STUN
    #[arg(long, value_name = "IP")]
    pub(crate) stun_ip: Option<IpAddr>,
    /// Its second public address for STUN
    #[arg(long, value_name = "IP", requires = "stun_ip")]
    pub(crate) stun_ip2: Option<IpAddr>,
    /// Its STUN port
    #[arg(long, value_name = "PORT", default_value_t = 3478, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) stun_port: u16,
    #[command(flatten)]
    pub(crate) controller: ControllerUrl,
}

#[derive(Debug, Args)]
pub(crate) struct ControllerUrl {
    /// The controller's URL as the server reaches it [default: the configuration's public_url]
    #[arg(long, value_name = "URL", value_parser = |s: &str| s.parse::<WsUrl>())]
    pub(crate) controller: Option<WsUrl>,
}

#[derive(Debug, Args)]
pub(crate) struct ServerRef {
    /// The server's id or name
    #[arg(value_name = "ID|NAME")]
    pub(crate) server: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Capability {
    /// Relays packets
    Relay,
    /// Answers STUN
    Stun,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a key with which nodes join
    Generate {
        /// What to make
        #[arg(long = "type", value_enum, value_name = "TYPE")]
        kind: TokenKind,
        /// The network (id or name) that it opens
        #[arg(long, value_name = "ID|NAME")]
        network: String,
        /// Good for any number of machines
        #[arg(long)]
        reusable: bool,
        /// Its nodes need no `node authorize`
        #[arg(long)]
        preauthorize: bool,
        /// Routes that its nodes announce need no `route enable`
        #[arg(long)]
        approve_routes: bool,
        /// How long it may be used: 90s, 15m, 24h, 7d or never
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_lifetime)]
        expires: Lifetime,
    },
    /// List auth keys; the keys themselves are not on record
    List {
        /// Only this network's (id or name)
        #[arg(long, value_name = "ID|NAME")]
        network: Option<String>,
    },
    /// Forget an auth key; nodes that joined with it stay
    Revoke {
        /// The key's id; `token list` shows it
        #[arg(value_name = "ID")]
        id: u32,
    },
    /// Revoke a token or all tokens of a node; without either, list what is revoked
    Blacklist {
        /// The token's jti
        #[arg(conflicts_with = "node")]
        jti: Option<String>,
        /// All tokens of this node (id or name)
        #[arg(long, value_name = "ID|NAME")]
        node: Option<String>,
        /// Why
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TokenKind {
    /// A key with which a new node joins
    AuthKey,
}

/// `None`: never ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime(pub(crate) Option<Duration>);

fn parse_lifetime(text: &str) -> Result<Lifetime, String> {
    if text == "never" {
        return Ok(Lifetime(None));
    }
    let advice = || "give a number and a unit, such as 90s, 15m, 24h or 7d, or never".to_owned();
    let unit = text.chars().last().ok_or_else(advice)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(advice()),
    };
    let number = text.strip_suffix(unit).filter(|n| n.bytes().all(|b| b.is_ascii_digit())).ok_or_else(advice)?;
    match number.parse::<u64>().map_err(|_| advice())?.checked_mul(seconds) {
        Some(0) => Err("a key that ends at once is of no use".into()),
        Some(seconds) if seconds <= 3650 * 86_400 => Ok(Lifetime(Some(Duration::from_secs(seconds)))),
        _ => Err("at most 3650d, or never".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn lifetimes() {
        for (text, seconds) in [("1s", 1), ("15m", 900), ("24h", 86_400), ("7d", 604_800), ("3650d", 315_360_000)] {
            assert_eq!(parse_lifetime(text), Ok(Lifetime(Some(Duration::from_secs(seconds)))));
        }
        assert_eq!(parse_lifetime("never"), Ok(Lifetime(None)));
        for bad in ["", "24", "h", "-1h", "+1h", "1.5h", "0h", "3651d", "99999999999999999999d", "24H", "1 h", "1é"] {
            assert!(parse_lifetime(bad).is_err(), "{bad}");
        }
    }
}
