//! A small registrar that does what RFC 3261 §10.3 says, and goes wrong where a test asks for it.

mod update;

use super::message::{stun_error, stun_success};
use super::server_wire::{
    Request, Via, address, aor, parameter, parameters, respond, same_uri, split, user,
};
use crate::Protocol;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use update::{Contacts, Update};

pub use super::server_wire::ServerAlgorithm;

/// A correct registrar for tests, without sockets and clock: requests go in with the time, responses come out
///
/// With the feature `tokio` it also [serves](Self::serve) on real sockets. It challenges with SHA-256 and MD5 in the
/// realm `test`, knows no user, and grants what is asked, at most 3600 s, until its setters say otherwise.
#[derive(Debug)]
pub struct TestServer {
    realm: String,
    users: HashMap<String, String>,
    algorithms: Vec<ServerAlgorithm>,
    require_auth: bool,
    grant: Duration,
    min_expires: Duration,
    nonce_uses: u32,
    supported: Vec<String>,
    ok_headers: Vec<(String, String)>,
    keep: Option<u32>,
    pongs: bool,
    stun: Option<StunAnswer>,
    keep_alives: Vec<(Duration, SocketAddr)>,
    silent: bool,
    faults: VecDeque<Fault>,
    standing: HashMap<String, Fault>,
    nonces: HashMap<String, Nonce>,
    nonces_by_age: VecDeque<String>,
    counter: u64,
    aors: HashMap<String, Vec<ServerBinding>>,
    answered: HashMap<String, Answered>,
    log: Vec<LoggedRequest>,
    now: Duration,
}

/// What shall go wrong with the next requests; each waits in the queue for its turn
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The next request gets this response.
    Respond {
        /// The status code
        code: u16,
        /// Further headers of the response
        headers: Vec<(String, String)>,
        /// Whether the request must have been authenticated before
        after_auth: bool,
    },
    /// So many requests, retransmissions counted, get no response.
    Drop(u32),
    /// The next request is answered as it should be, so much later.
    Delay(Duration),
    /// The next request is answered as it should be, and its connection closed after that.
    Close,
}

impl Fault {
    /// The next request gets this response, before any authentication.
    #[must_use]
    pub const fn respond(code: u16) -> Self {
        Self::Respond {
            code,
            headers: Vec::new(),
            after_auth: false,
        }
    }

    /// Adds a header to the response of [`Respond`](Self::Respond); other faults stay as they are.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Self::Respond { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Lets [`Respond`](Self::Respond) wait for a request with good credentials; others are challenged until then.
    #[must_use]
    pub const fn after_auth(mut self) -> Self {
        if let Self::Respond { after_auth, .. } = &mut self {
            *after_auth = true;
        }
        self
    }

    const fn is_after_auth(&self) -> bool {
        matches!(
            self,
            Self::Respond {
                after_auth: true,
                ..
            }
        )
    }
}

/// How a [`TestServer`] answers a STUN Binding request
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StunAnswer {
    /// With the address it came from, as a server does.
    Source,
    /// With this address.
    Mapped(SocketAddr),
    /// With this error code.
    Error(u16),
}

/// A response, and when and where it shall go
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerReply {
    /// How long after the request it is sent
    pub after: Duration,
    /// Where to, on UDP (RFC 3581 §4); on a stream it goes back on the connection
    pub to: SocketAddr,
    /// The response
    pub message: Bytes,
    /// Whether the connection is closed after it
    pub close: bool,
}

/// A binding that the server holds
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerBinding {
    /// The Contact URI
    pub contact: String,
    /// The other parameters of the Contact, without `expires`
    pub parameters: Vec<String>,
    /// When it ends, on the clock of [`TestServer::handle`]
    pub expires_at: Duration,
    /// The Call-ID that set it last
    pub call_id: String,
    /// The CSeq that set it last
    pub cseq: u32,
    /// Where the request came from
    pub source: SocketAddr,
    /// What carried it
    pub protocol: Protocol,
}

/// A request as it came in
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedRequest {
    /// When, on the clock of [`TestServer::handle`]
    pub at: Duration,
    /// Where it came from
    pub source: SocketAddr,
    /// What carried it
    pub protocol: Protocol,
    /// The whole message
    pub message: Bytes,
    /// Whether it came before and was answered, so that the same response goes out again
    pub retransmission: bool,
    /// The status code of its response, sent or still delayed; none where there is none
    pub answer: Option<u16>,
}

#[derive(Debug)]
struct Answered {
    at: Duration,
    code: u16,
    reply: ServerReply,
}

#[derive(Debug, Default)]
struct Nonce {
    uses: u32,
    last_count: u32,
}

/// A response that is still to be written: its code and headers
type Answer = (u16, Vec<(String, String)>);

impl Default for TestServer {
    fn default() -> Self {
        Self::new()
    }
}

impl TestServer {
    /// A registrar with the settings of the type's description.
    #[must_use]
    pub fn new() -> Self {
        Self {
            realm: "test".to_owned(),
            users: HashMap::new(),
            algorithms: vec![ServerAlgorithm::Sha256, ServerAlgorithm::Md5],
            require_auth: true,
            grant: DEFAULT_EXPIRES,
            min_expires: Duration::ZERO,
            nonce_uses: u32::MAX,
            supported: vec!["path".to_owned()],
            ok_headers: Vec::new(),
            keep: None,
            pongs: true,
            stun: Some(StunAnswer::Source),
            keep_alives: Vec::new(),
            silent: false,
            faults: VecDeque::new(),
            standing: HashMap::new(),
            nonces: HashMap::new(),
            nonces_by_age: VecDeque::new(),
            counter: 0,
            aors: HashMap::new(),
            answered: HashMap::new(),
            log: Vec::new(),
            now: Duration::ZERO,
        }
    }

    /// Sets the realm of its challenges; default `test`.
    #[must_use]
    pub fn realm(mut self, realm: &str) -> Self {
        realm.clone_into(&mut self.realm);
        self
    }

    /// Adds a user, who may register the address of record with his name as its user part.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.users.insert(name.to_owned(), password.to_owned());
        self
    }

    /// Sets the algorithms of its challenges, in their order; default SHA-256, MD5.
    #[must_use]
    pub fn algorithms(mut self, algorithms: impl IntoIterator<Item = ServerAlgorithm>) -> Self {
        self.algorithms = algorithms.into_iter().collect();
        self
    }

    /// Sets whether requests need credentials; default `true`. Without, any address of record may be registered.
    #[must_use]
    pub const fn require_auth(mut self, require: bool) -> Self {
        self.require_auth = require;
        self
    }

    /// Sets the longest lifetime granted, in whole seconds; default 3600 s.
    #[must_use]
    pub const fn grant(mut self, longest: Duration) -> Self {
        self.grant = longest;
        self
    }

    /// Sets the lifetime below which a request gets 423, in whole seconds; default none.
    #[must_use]
    pub const fn min_expires(mut self, shortest: Duration) -> Self {
        self.min_expires = shortest;
        self
    }

    /// Sets how often a nonce is good, before `stale=true`; default without end.
    #[must_use]
    pub const fn nonce_uses(mut self, uses: u32) -> Self {
        self.nonce_uses = uses;
        self
    }

    /// Adds an option tag that may be required; default `path`. Others get 420.
    #[must_use]
    pub fn supports(mut self, option: &str) -> Self {
        self.supported.push(option.to_ascii_lowercase());
        self
    }

    /// Adds a header to each 200 to a REGISTER (Service-Route, P-Associated-URI and such).
    #[must_use]
    pub fn ok_header(mut self, name: &str, value: &str) -> Self {
        self.ok_headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Agrees to answer keep-alives: `keep` of a Via that offers it gets this value (RFC 6223 §4.4). Default: it does not.
    #[must_use]
    pub const fn keep(mut self, seconds: u32) -> Self {
        self.keep = Some(seconds);
        self
    }

    /// Sets whether a CRLFCRLF on a stream is answered with CRLF (RFC 5626 §4.4.1); default `true`.
    #[must_use]
    pub const fn pongs(mut self, answers: bool) -> Self {
        self.set_pongs(answers);
        self
    }

    /// The same while it serves.
    pub const fn set_pongs(&mut self, answers: bool) {
        self.pongs = answers;
    }

    /// Sets how a STUN Binding request is answered; default [`StunAnswer::Source`], none is not at all.
    #[must_use]
    pub const fn stun(mut self, answer: Option<StunAnswer>) -> Self {
        self.set_stun(answer);
        self
    }

    /// The same while it serves.
    pub const fn set_stun(&mut self, answer: Option<StunAnswer>) {
        self.stun = answer;
    }

    /// The keep-alives that came so far, CRLF and STUN: when, and from where.
    #[must_use]
    pub fn keep_alives(&self) -> &[(Duration, SocketAddr)] {
        &self.keep_alives
    }

    /// Takes a keep-alive, CRLFs or STUN, and gives the answer to it.
    pub fn keep_alive(
        &mut self,
        now: Duration,
        source: SocketAddr,
        protocol: Protocol,
        message: &[u8],
    ) -> Option<Bytes> {
        self.advance_to(now);
        self.keep_alives.push((self.now, source));
        if self.silent {
            return None;
        }
        match message {
            b"\r\n\r\n" if protocol.is_reliable() => {
                self.pongs.then(|| Bytes::from_static(b"\r\n"))
            }
            _ if protocol.is_reliable() => None,
            request => match self.stun? {
                StunAnswer::Source => stun_success(request, source),
                StunAnswer::Mapped(mapped) => stun_success(request, mapped),
                StunAnswer::Error(code) => stun_error(request, code),
            },
        }
    }

    /// Puts a fault at the end of the queue.
    pub fn fault(&mut self, fault: Fault) {
        self.faults.push_back(fault);
    }

    /// Sets what goes wrong with every request for the address of record of a user, beside the queue, which is served
    /// first; default nothing. A [`Fault::Drop`] drops them all, whatever its number.
    pub fn set_user_fault(&mut self, name: &str, fault: Option<Fault>) {
        match fault {
            Some(fault) => drop(self.standing.insert(name.to_owned(), fault)),
            None => drop(self.standing.remove(name)),
        }
    }

    /// Sets whether requests and keep-alives get no answer at all, as from a host that is down; default `false`.
    ///
    /// Nothing else is lost by it: bindings last until they expire, connections stay.
    pub const fn set_silent(&mut self, silent: bool) {
        self.silent = silent;
    }

    /// The bindings of an address of record (`sip:alice@example.com`) that have not expired at the last request.
    #[must_use]
    pub fn bindings(&self, of: &str) -> Vec<ServerBinding> {
        let bindings = aor(of)
            .and_then(|aor| self.aors.get(&aor))
            .map(Vec::as_slice)
            .unwrap_or_default();
        bindings
            .iter()
            .filter(|binding| binding.expires_at > self.now)
            .cloned()
            .collect()
    }

    /// Forgets all bindings, as a registrar does that restarts without a database.
    pub fn forget_bindings(&mut self) {
        self.aors.clear();
    }

    /// All requests so far, retransmissions too.
    #[must_use]
    pub fn requests(&self) -> &[LoggedRequest] {
        &self.log
    }

    /// The requests since the last call, which are forgotten: what watches for long keeps the log short by it.
    pub fn take_requests(&mut self) -> Vec<LoggedRequest> {
        std::mem::take(&mut self.log)
    }

    /// Moves the clock, so that bindings expire; `now` counts from any one point, the same for all calls.
    pub fn advance_to(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// Takes a request and gives what is to be sent for it.
    pub fn handle(
        &mut self,
        now: Duration,
        source: SocketAddr,
        protocol: Protocol,
        request: &[u8],
    ) -> Vec<ServerReply> {
        self.advance_to(now);
        let now = self.now;
        let message = Bytes::copy_from_slice(request);
        let Some(request) = Request::parse(request) else {
            return Vec::new();
        };
        let Some(via) = Via::top(&request) else {
            return Vec::new();
        };
        let key = format!("{} {} {protocol}", request.method, via.key());
        self.answered
            .retain(|_, answered| now < answered.at + answered.reply.after + TRANSACTION);
        let mut logged = LoggedRequest {
            at: now,
            source,
            protocol,
            message,
            retransmission: false,
            answer: None,
        };
        if let Some(earlier) = self.answered.get(&key) {
            logged.retransmission = true;
            // Before its response is due, a retransmission is absorbed (RFC 3261 §17.2.2).
            let again = (now >= earlier.at + earlier.reply.after && !self.silent).then(|| {
                logged.answer = Some(earlier.code);
                ServerReply {
                    after: Duration::ZERO,
                    close: false,
                    ..earlier.reply.clone()
                }
            });
            self.log.push(logged);
            return again.into_iter().collect();
        }
        let answered = if self.silent || request.method == "ACK" {
            None
        } else {
            self.respond_to(&request, &via, source, protocol)
        };
        logged.answer = answered.as_ref().map(|answered| answered.code);
        self.log.push(logged);
        let reply = answered.as_ref().map(|answered| answered.reply.clone());
        if let Some(answered) = answered {
            self.answered.insert(key, answered);
        }
        reply.into_iter().collect()
    }

    /// The response to a request that did not come before, unless a fault drops it.
    fn respond_to(
        &mut self,
        request: &Request,
        via: &Via,
        source: SocketAddr,
        protocol: Protocol,
    ) -> Option<Answered> {
        let (mut after, mut close) = (Duration::ZERO, false);
        let mut answer = None;
        match self.fault_before_auth(request) {
            Some(Fault::Drop(_)) => return None,
            Some(Fault::Delay(by)) => after = by,
            Some(Fault::Close) => close = true,
            Some(Fault::Respond { code, headers, .. }) => answer = Some((code, headers)),
            None => {}
        }
        let (code, headers) = answer.unwrap_or_else(|| {
            self.answer(request, source, protocol)
                .unwrap_or_else(|refusal| refusal)
        });
        self.counter += 1;
        let tag = format!("ts{}", self.counter);
        let message = respond(request, source, code, &tag, &headers, self.keep);
        Some(Answered {
            at: self.now,
            code,
            reply: ServerReply {
                after,
                to: via.answer_to(source),
                message,
                close,
            },
        })
    }

    /// What goes wrong with a request before anything of it is checked: what is first in the queue, else what stands for
    /// its user.
    fn fault_before_auth(&mut self, request: &Request) -> Option<Fault> {
        match self.faults.front_mut() {
            Some(Fault::Drop(left @ 2..)) => {
                *left -= 1;
                Some(Fault::Drop(*left))
            }
            Some(Fault::Respond {
                after_auth: true, ..
            }) => None,
            Some(_) => self.faults.pop_front(),
            None => self
                .user_fault(request)
                .filter(|fault| !fault.is_after_auth()),
        }
    }

    /// The response of a fault to a request with good credentials.
    fn fault_after_auth(&mut self, request: &Request) -> Option<Answer> {
        let fault = match self.faults.front() {
            Some(Fault::Respond { .. }) => self.faults.pop_front(),
            Some(_) => None,
            None => self.user_fault(request).filter(Fault::is_after_auth),
        };
        match fault? {
            Fault::Respond { code, headers, .. } => Some((code, headers)),
            Fault::Drop(_) | Fault::Delay(_) | Fault::Close => None,
        }
    }

    fn user_fault(&self, request: &Request) -> Option<Fault> {
        let (to, _) = address(request.header("To")?)?;
        self.standing.get(&user(&to)?).cloned()
    }

    /// The order of RFC 3261 §8.2 and §10.3: method, extensions, who, what, then the bindings.
    fn answer(
        &mut self,
        request: &Request,
        source: SocketAddr,
        protocol: Protocol,
    ) -> Result<Answer, Answer> {
        let allow = || vec![header("Allow", "REGISTER, OPTIONS")];
        match request.method.as_str() {
            "REGISTER" => {}
            "OPTIONS" => return Ok((200, allow())),
            "CANCEL" => return Err((481, Vec::new())),
            _ => return Err((405, allow())),
        }
        let refused: Vec<_> = request
            .list("Require")
            .into_iter()
            .filter(|tag| !self.is_supported(tag))
            .collect();
        if !refused.is_empty() {
            return Err((420, vec![header("Unsupported", &refused.join(", "))]));
        }
        let update = Update::read(request, source, protocol).ok_or((400, Vec::new()))?;
        if self.require_auth {
            let name = self.authenticate(request)?;
            if user(&update.to).as_deref() != Some(&name) {
                return Err((403, Vec::new()));
            }
        }
        if let Some(answer) = self.fault_after_auth(request) {
            return Err(answer);
        }
        self.update(update, request)
    }

    fn is_supported(&self, tag: &str) -> bool {
        self.supported
            .iter()
            .any(|known| known.eq_ignore_ascii_case(tag))
    }

    /// The user whose credentials the request carries (RFC 3261 §22.4, RFC 7616 §3.4), or the challenge.
    fn authenticate(&mut self, request: &Request) -> Result<String, Answer> {
        for line in request.lines("Authorization") {
            let Some((scheme, rest)) = line.split_once(' ') else {
                continue;
            };
            let params = parameters(&split(rest, ','));
            if !scheme.eq_ignore_ascii_case("Digest")
                || parameter(&params, "realm") != Some(&self.realm)
            {
                continue;
            }
            return match self.check(request, &params) {
                Some(Check::Good(name)) => Ok(name),
                Some(Check::Stale) => Err(self.challenge(true)),
                None => Err(self.challenge(false)),
            };
        }
        Err(self.challenge(false))
    }

    fn check(&mut self, request: &Request, params: &[(String, String)]) -> Option<Check> {
        let get = |name| parameter(params, name);
        let (name, uri, nonce, cnonce) =
            (get("username")?, get("uri")?, get("nonce")?, get("cnonce")?);
        let (qop, nc, response) = (get("qop")?, get("nc")?, get("response")?);
        let token = get("algorithm").unwrap_or("MD5");
        let algorithm = *self
            .algorithms
            .iter()
            .find(|algorithm| algorithm.token().eq_ignore_ascii_case(token))?;
        let count = u32::from_str_radix(nc, 16)
            .ok()
            .filter(|count| *count > 0 && nc.len() == 8)?;
        if qop != "auth" || cnonce.is_empty() || uri != request.uri || get("opaque") != Some(OPAQUE)
        {
            return None;
        }
        let a1 = algorithm.hash(&format!("{name}:{}:{}", self.realm, self.users.get(name)?));
        let a2 = algorithm.hash(&format!("{}:{uri}", request.method));
        if response != algorithm.hash(&format!("{a1}:{nonce}:{nc}:{cnonce}:{qop}:{a2}")) {
            return None;
        }
        // The password is right. What is wrong with the nonce from here on is stale (RFC 7616 §3.3): unknown, used
        // up, or its count repeated.
        let Some(known) = self.nonces.get_mut(nonce) else {
            return Some(Check::Stale);
        };
        if known.uses >= self.nonce_uses || count <= known.last_count {
            return Some(Check::Stale);
        }
        known.uses += 1;
        known.last_count = count;
        Some(Check::Good(name.to_owned()))
    }

    /// A challenge an algorithm, all with one new nonce (RFC 8760 §2.3).
    fn challenge(&mut self, stale: bool) -> Answer {
        self.counter += 1;
        let (realm, nonce) = (
            self.realm.replace('\\', r"\\").replace('"', "\\\""),
            nonce_text(self.counter),
        );
        self.nonces.insert(nonce.clone(), Nonce::default());
        self.nonces_by_age.push_back(nonce.clone());
        if self.nonces_by_age.len() > MOST_NONCES
            && let Some(oldest) = self.nonces_by_age.pop_front()
        {
            self.nonces.remove(&oldest);
        }
        let stale = if stale { ", stale=true" } else { "" };
        let challenge = |algorithm: &ServerAlgorithm| {
            let token = algorithm.token();
            let value = format!(
                r#"Digest realm="{realm}", nonce="{nonce}", opaque="{OPAQUE}", algorithm={token}, qop="auth"{stale}"#
            );
            ("WWW-Authenticate".to_owned(), value)
        };
        (401, self.algorithms.iter().map(challenge).collect())
    }

    /// Changes the bindings, all or nothing (RFC 3261 §10.3 steps 6 to 8).
    fn update(&mut self, update: Update, request: &Request) -> Result<Answer, Answer> {
        let key = aor(&update.to).ok_or((400, Vec::new()))?;
        let now = self.now;
        let mut bindings = self.aors.get(&key).cloned().unwrap_or_default();
        bindings.retain(|binding| binding.expires_at > now);
        let out_of_order = |binding: &ServerBinding| {
            // The same Call-ID, and no later request: the update fails as a whole.
            binding.call_id == update.call_id && binding.cseq >= update.cseq
        };
        match update.contacts {
            Contacts::All => {
                if bindings.iter().any(out_of_order) {
                    return Err((400, Vec::new()));
                }
                bindings.clear();
            }
            Contacts::Each(contacts) => {
                for contact in contacts {
                    let asked = contact
                        .expires
                        .or(update.expires)
                        .unwrap_or(DEFAULT_EXPIRES);
                    if !asked.is_zero() && asked < self.min_expires {
                        let least = self.min_expires.as_secs().to_string();
                        return Err((423, vec![header("Min-Expires", &least)]));
                    }
                    let found = bindings
                        .iter()
                        .position(|binding| same_uri(&binding.contact, &contact.uri));
                    if found.is_some_and(|found| bindings.get(found).is_some_and(out_of_order)) {
                        return Err((400, Vec::new()));
                    }
                    let binding = ServerBinding {
                        contact: contact.uri,
                        parameters: contact.parameters,
                        expires_at: now + asked.min(self.grant),
                        call_id: update.call_id.clone(),
                        cseq: update.cseq,
                        source: update.source,
                        protocol: update.protocol,
                    };
                    match found {
                        Some(found) if asked.is_zero() => drop(bindings.remove(found)),
                        Some(found) => bindings[found] = binding,
                        None if asked.is_zero() => {}
                        None => bindings.push(binding),
                    }
                }
            }
        }
        let mut headers: Vec<_> = bindings
            .iter()
            .map(|binding| header("Contact", &binding.value(now)))
            .collect();
        // RFC 3327 §5.3: the Path that is stored is told.
        headers.extend(request.lines("Path").map(|path| header("Path", path)));
        headers.extend(self.ok_headers.iter().cloned());
        self.aors.insert(key, bindings);
        Ok((200, headers))
    }
}

enum Check {
    Good(String),
    Stale,
}

impl ServerBinding {
    /// As a Contact of the 200 has it.
    fn value(&self, now: Duration) -> String {
        let mut value = format!("<{}>", self.contact);
        for parameter in &self.parameters {
            value.push(';');
            value.push_str(parameter);
        }
        let left = self.expires_at.saturating_sub(now);
        format!(
            "{value};expires={}",
            left.as_secs() + u64::from(left.subsec_nanos() > 0)
        )
    }
}

fn header(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// A nonce that looks like one, though a test needs no secret in it.
fn nonce_text(number: u64) -> String {
    ServerAlgorithm::Md5.hash(&format!("nonce {number}"))
}

/// The lifetime where a request asks for none
const DEFAULT_EXPIRES: Duration = Duration::from_secs(3600);
/// How long a response is kept for retransmissions: timer J (RFC 3261 §17.2.2)
const TRANSACTION: Duration = Duration::from_secs(32);
/// Nonces kept; older ones are stale
const MOST_NONCES: usize = 16_384;
/// What a client has to send back as it is (RFC 7616 §3.4)
const OPAQUE: &str = "testserver";

#[cfg(test)]
mod tests;
