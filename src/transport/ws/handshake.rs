//! From HTTP to WebSocket (RFC 6455 §4.1, RFC 7118 §4.1).

use super::config::WsConfig;
use super::failure;
use crate::transport::stream::{Meaning, READ};
use crate::transport::tls::bare;
use crate::{FlowError, Target, WsError};
use std::net::Ipv6Addr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::http::{self, HeaderValue, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

pub(super) type Request = http::Request<()>;

/// The longest WebSocket message that ends no connection: it comes in one piece, and takes as much memory
const LONGEST: usize = 1 << 20;

/// The request for a WebSocket at `to`, under the host of the URI.
pub(super) fn request(config: &WsConfig, to: &Target) -> Result<Request, FlowError> {
    let scheme = if to.protocol().is_secure() {
        "wss"
    } else {
        "ws"
    };
    let authority = authority(to);
    let uri = format!("{scheme}://{authority}{}", config.path());
    let mut request = http::Request::get(uri)
        .header(header::HOST, authority)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .header(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static("sip"),
        );
    for (name, value) in config.headers() {
        request = request.header(name, value);
    }
    // A host that HTTP has no word for.
    request
        .body(())
        .map_err(|error| FlowError::WebSocket(WsError::Broken(error.to_string().into())))
}

/// The value of `Host`: the port goes without saying where it is the scheme's (RFC 6455 §4.1).
fn authority(to: &Target) -> String {
    let host = bare(to.host());
    let port = to.address().port();
    let host = match host.parse::<Ipv6Addr>() {
        Ok(_) => format!("[{host}]"),
        Err(_) => host.to_owned(),
    };
    if port == to.protocol().default_port() {
        host
    } else {
        format!("{host}:{port}")
    }
}

/// Asks for a WebSocket.
pub(super) async fn shake<S>(
    request: Request,
    stream: S,
    meaning: Meaning,
) -> Result<WebSocketStream<S>, FlowError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limits = WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(0)
        .max_message_size(Some(LONGEST))
        .max_frame_size(Some(LONGEST));
    let (socket, response) = client_async_with_config(request, stream, Some(limits))
        .await
        .map_err(|error| failure::handshake(error, meaning))?;
    // We asked for none, so a server that uses one is not understood (RFC 6455 §4.1).
    if response
        .headers()
        .contains_key(header::SEC_WEBSOCKET_EXTENSIONS)
    {
        let why = "an extension that nobody asked for";
        return Err(FlowError::WebSocket(WsError::NotWebSocket(why.into())));
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;

    #[test]
    fn the_host_is_that_of_the_uri_with_a_port_where_it_is_another() {
        for (protocol, address, host, expected) in [
            (
                Protocol::Ws,
                "192.0.2.1:80",
                "pbx.example.com",
                "pbx.example.com",
            ),
            (
                Protocol::Ws,
                "192.0.2.1:443",
                "pbx.example.com",
                "pbx.example.com:443",
            ),
            (Protocol::Wss, "192.0.2.1:443", "192.0.2.1", "192.0.2.1"),
            (
                Protocol::Wss,
                "[2001:db8::1]:8443",
                "2001:db8::1",
                "[2001:db8::1]:8443",
            ),
            (
                Protocol::Wss,
                "[2001:db8::1]:443",
                "[2001:db8::1]",
                "[2001:db8::1]",
            ),
        ] {
            let target = Target::new(protocol, address.parse().unwrap()).with_host(host);
            let request = request(&WsConfig::new(), &target).unwrap();
            assert_eq!(request.headers()[header::HOST], expected);
        }
    }

    #[test]
    fn what_is_asked_for_is_sip_under_the_path_and_with_the_headers_of_the_host() {
        let config = WsConfig::new()
            .with_path("/sip?token=abc")
            .and_then(|config| config.with_header("Origin", "https://www.example.com"))
            .and_then(|config| config.with_header("Cookie", "a=1"))
            .unwrap();
        let target = Target::new(Protocol::Wss, "192.0.2.1:443".parse().unwrap());
        let request = request(&config, &target).unwrap();
        assert_eq!(request.uri().to_string(), "wss://192.0.2.1/sip?token=abc");
        for (name, value) in [
            ("sec-websocket-protocol", "sip"),
            ("sec-websocket-version", "13"),
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("origin", "https://www.example.com"),
            ("cookie", "a=1"),
        ] {
            assert_eq!(request.headers()[name], value);
        }
        let other = super::request(&config, &target).unwrap();
        let key = |request: &Request| request.headers()[header::SEC_WEBSOCKET_KEY].clone();
        assert_ne!(key(&request), key(&other));
    }
}
