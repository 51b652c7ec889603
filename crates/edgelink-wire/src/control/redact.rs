//! `Debug` of the messages that hold secrets: it tells that there is one, never which.

use super::proto;
use std::fmt;

/// Stands for a secret.
struct Hidden(bool);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "<secret>" } else { "<none>" })
    }
}

fn hide(secret: impl AsRef<[u8]>) -> Hidden {
    Hidden(!secret.as_ref().is_empty())
}

impl fmt::Debug for proto::AuthRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthRequest")
            .field("protocol_version", &self.protocol_version)
            .field("capabilities", &self.capabilities)
            .field("machine_pub", &self.machine_pub)
            .field("token", &hide(&self.token))
            .field("host_info", &self.host_info)
            .field("signature", &hide(&self.signature))
            .field("host", &self.host)
            .field("auth_key", &hide(&self.auth_key))
            .finish()
    }
}

impl fmt::Debug for proto::Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("auth_token", &hide(&self.auth_token))
            .field("auth_expires", &self.auth_expires)
            .field("relay_token", &hide(&self.relay_token))
            .field("relay_expires", &self.relay_expires)
            .finish()
    }
}

impl fmt::Debug for proto::RelayKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayKeys")
            .field("algorithm", &self.algorithm)
            .field("key", &hide(&self.key))
            .field("relay_auth_pub", &self.relay_auth_pub)
            .finish()
    }
}

impl fmt::Debug for proto::MeshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshToken")
            .field("server_id", &self.server_id)
            .field("token", &hide(&self.token))
            .field("url", &self.url)
            .field("path", &self.path)
            .finish()
    }
}
