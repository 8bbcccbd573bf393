//! `keel token`: join tokens.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{ArgGroup, Subcommand};
use keel_certs::{JoinToken, Namespace, NodeName, PodName, TokenId};
use keel_control::enroll::wire::{TokenInfo, TokenRequest};
use keel_control::enroll::{MAX_TOKEN_LIFE, MAX_TOKEN_USES, local};
use keel_control::store::TokenScope;
use keel_fabric::quic::HostPort;

use super::table::{age, render};
use super::{NodeDir, access, answer};
use crate::errors::{Usage, chain};
use crate::process::say;
use crate::settings::{Span, within};

/// Flags of `keel token`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  keel token create --node b > token              node b joins with it: keel up --join @token
  keel token create --sidecar default/laptop      a sidecar without a node joins with it
  keel token revoke ID")]
pub(crate) struct Flags {
    #[command(flatten)]
    node: NodeDir,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token; it is printed once and kept nowhere
    #[command(group = ArgGroup::new("scope").args(["node", "sidecar"]),
        after_help = "Example:\n  keel token create --node b --ttl 1h > token")]
    Create {
        /// Only the node of this name may join with it [default: any one node]
        #[arg(long, value_name = "N")]
        node: Option<NodeName>,
        /// A sidecar of this namespace and name joins with it
        #[arg(long, value_name = "NS/NAME")]
        sidecar: Option<Workload>,
        /// How long it is good for
        #[arg(long, value_name = "TIME", default_value = "10m")]
        ttl: Span,
        /// For how many
        #[arg(long, value_name = "COUNT", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_TOKEN_USES)))]
        uses: u32,
        /// Where to join, if not the first advertised host
        #[arg(long, value_name = "HOST:PORT")]
        endpoint: Option<HostPort>,
    },
    /// List the tokens
    List,
    /// Make a token good for nothing
    Revoke {
        /// Its id, as `keel token list` shows it, or the whole token
        #[arg(value_parser = id)]
        id: TokenId,
    },
}

/// `NAMESPACE/NAME` of a sidecar.
#[derive(Debug, Clone)]
struct Workload {
    namespace: Namespace,
    name: PodName,
}

impl std::str::FromStr for Workload {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let (namespace, name) = text
            .split_once('/')
            .ok_or_else(|| Usage("write NAMESPACE/NAME, as in default/laptop".to_owned()))?;
        Ok(Self {
            namespace: namespace.parse().map_err(|error| Usage(chain(&error)))?,
            name: name.parse().map_err(|error| Usage(chain(&error)))?,
        })
    }
}

/// Lives are counted in seconds.
const SECOND: Duration = Duration::from_secs(1);

pub(crate) async fn run(flags: Flags) -> anyhow::Result<()> {
    let socket = access::socket(&flags.node.path());
    match flags.command {
        Command::Create {
            node,
            sidecar,
            ttl,
            uses,
            endpoint,
        } => {
            let scope = match sidecar {
                Some(sidecar) => TokenScope::Sidecar {
                    namespace: sidecar.namespace,
                    name: sidecar.name,
                },
                None => TokenScope::Node { node },
            };
            let endpoint = endpoint.map(|endpoint| endpoint.to_string());
            let request = TokenRequest {
                scope,
                ttl_seconds: within(ttl, "--ttl", SECOND, MAX_TOKEN_LIFE)?.as_secs(),
                uses,
                endpoint,
            };
            let token = local::create_token(&socket, &request).await?;
            answer(&format!("{token}\n"))?;
            say(&format!(
                "token {} joins at {}, good for {ttl}, {uses} use(s)",
                token.id, token.endpoint
            ));
        }
        Command::List => {
            let tokens = local::tokens(&socket).await?;
            answer(&match tokens.is_empty() {
                true => "no tokens\n".to_owned(),
                false => table(&tokens, SystemTime::now()),
            })?;
        }
        Command::Revoke { id } => {
            local::revoke_token(&socket, &id).await?;
            answer(&format!("token {id} revoked\n"))?;
        }
    }
    Ok(())
}

/// An ID, or that of a whole token.
fn id(text: &str) -> Result<TokenId, String> {
    let whole = text.parse::<JoinToken>().map(|token| token.id);
    whole
        .or_else(|_| text.parse())
        .map_err(|_| "it takes an ID of `keel token list`, or the whole token".to_owned())
}

fn table(tokens: &[TokenInfo], now: SystemTime) -> String {
    let rows: Vec<Vec<String>> = tokens
        .iter()
        .map(|token| {
            let good_for = match &token.scope {
                TokenScope::Node { node: Some(node) } => format!("node {node}"),
                TokenScope::Node { node: None } => "any node".to_owned(),
                TokenScope::Sidecar { namespace, name } => format!("sidecar {namespace}/{name}"),
            };
            let left = (UNIX_EPOCH + Duration::from_secs(token.expires_at)).duration_since(now);
            let state = match (token.revoked, left, token.uses_left) {
                (true, _, _) => "revoked".to_owned(),
                (_, Err(_), _) => "expired".to_owned(),
                (_, _, 0) => "used up".to_owned(),
                (_, Ok(left), _) => format!(
                    "{} left",
                    age(i64::try_from(left.as_secs()).unwrap_or(i64::MAX))
                ),
            };
            vec![
                token.id.to_string(),
                good_for,
                token.uses_left.to_string(),
                state,
            ]
        })
        .collect();
    render(&["ID", "FOR", "USES LEFT", "STATE"], &rows)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Keel {
        #[command(flatten)]
        flags: Flags,
    }

    fn create(flag: &str, value: &str) -> Result<Flags, clap::Error> {
        Keel::try_parse_from(["token", "create", flag, value]).map(|keel| keel.flags)
    }

    #[tokio::test]
    async fn uses_and_life_have_bounds_and_beyond_them_is_wrong_usage() {
        assert!(create("--uses", "10000").is_ok());
        for uses in ["0", "10001", "4000000000"] {
            assert_eq!(create("--uses", uses).unwrap_err().exit_code(), 2);
        }
        for life in ["0s", "999ms", "31d"] {
            let error = run(create("--ttl", life).unwrap()).await.unwrap_err();
            assert!(
                error.is::<Usage>() && error.to_string().contains(life),
                "{error}"
            );
        }
    }
}
