//! The command line, and the list of trunks that it makes.

use sip_registration::testkit::Fault;
use sip_registration::{BuildError, Credentials, Registration};
use std::net::SocketAddr;
use std::time::Duration;

pub(crate) const USAGE: &str = "trunks [--trunks N] [--expires SECONDS] [--spread SECONDS] [--faults PERCENT] \
    [--fault 503|403|password|silence]... [--tcp] [--seconds N] [--plain]\n\
    --trunks   how many; 1000\n\
    --expires  the lifetime that each asks for; 90\n\
    --spread   the first REGISTER of each comes within it, at random (max_random_initial_delay); 10\n\
    --faults   with how many of them it goes wrong; 0\n\
    --fault    what goes wrong with these, several in turn; all: 503 with Retry-After, 403, a wrong password, no answer\n\
    --tcp      one TCP connection for all instead of UDP\n\
    --seconds  ends by itself after them\n\
    --plain    lines instead of a live table, as where the output is no terminal";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) trunks: u32,
    pub(crate) expires: Duration,
    pub(crate) spread: Duration,
    pub(crate) faults: u32,
    /// Of which kinds; none is all
    pub(crate) kinds: Vec<Trouble>,
    pub(crate) tcp: bool,
    pub(crate) seconds: Option<Duration>,
    pub(crate) plain: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            trunks: 1000,
            expires: Duration::from_secs(90),
            spread: Duration::from_secs(10),
            faults: 0,
            kinds: Vec::new(),
            tcp: false,
            seconds: None,
            plain: false,
        }
    }
}

impl Options {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(flag) = args.next() {
            let mut number = |least: u32, most: u32| {
                let text = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
                let number = text.parse().ok();
                number
                    .filter(|number| (least..=most).contains(number))
                    .ok_or_else(|| format!("{flag} {text:?} is no number from {least} to {most}"))
            };
            let seconds = |number: u32| Duration::from_secs(number.into());
            match flag.as_str() {
                "--trunks" => options.trunks = number(1, 100_000)?,
                "--expires" => options.expires = seconds(number(10, 86_400)?),
                "--spread" => options.spread = seconds(number(0, 3600)?),
                "--faults" => options.faults = number(0, 100)?,
                "--fault" => options.kinds.push(Trouble::parse(args.next().as_deref())?),
                "--seconds" => options.seconds = Some(seconds(number(1, 86_400)?)),
                "--tcp" => options.tcp = true,
                "--plain" => options.plain = true,
                _ => return Err(format!("unknown argument {flag:?}")),
            }
        }
        Ok(options)
    }
}

/// What goes wrong with a trunk
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Busy,
    Forbidden,
    WrongPassword,
    NoAnswer,
}

impl Trouble {
    const ALL: [Self; 4] = [
        Self::Busy,
        Self::Forbidden,
        Self::WrongPassword,
        Self::NoAnswer,
    ];

    fn parse(text: Option<&str>) -> Result<Self, String> {
        match text {
            Some("503") => Ok(Self::Busy),
            Some("403") => Ok(Self::Forbidden),
            Some("password") => Ok(Self::WrongPassword),
            Some("silence") => Ok(Self::NoAnswer),
            Some(other) => Err(format!(
                "--fault {other:?} is none of 503, 403, password, silence"
            )),
            None => Err("--fault needs a value".to_owned()),
        }
    }

    /// What the registrar does for it; nothing where it is the trunk that is wrong.
    pub(crate) fn fault(self) -> Option<Fault> {
        match self {
            Self::Busy => Some(Fault::respond(503).header("Retry-After", "15").after_auth()),
            Self::Forbidden => Some(Fault::respond(403).after_auth()),
            Self::WrongPassword => None,
            Self::NoAnswer => Some(Fault::Drop(1)),
        }
    }
}

/// One of the list
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Trunk {
    pub(crate) name: String,
    /// The registrar's; a trunk with the wrong one has another
    pub(crate) password: String,
    pub(crate) trouble: Option<Trouble>,
}

/// The list, with the faulty ones evenly in it.
pub(crate) fn generate(options: &Options) -> Vec<Trunk> {
    let (trunks, faults) = (options.trunks, options.faults);
    let faulty_up_to = |number: u32| number * faults / 100;
    let kinds = match &options.kinds[..] {
        [] => &Trouble::ALL,
        kinds => kinds,
    };
    let mut turns = kinds.iter().copied().cycle();
    (1..=trunks)
        .map(|number| Trunk {
            name: format!("trunk-{number:04}"),
            password: format!("password of {number}"),
            trouble: (faulty_up_to(number) > faulty_up_to(number - 1))
                .then(|| turns.next())
                .flatten(),
        })
        .collect()
}

impl Trunk {
    pub(crate) fn registration(
        &self,
        registrar: SocketAddr,
        options: &Options,
    ) -> Result<Registration, BuildError> {
        let transport = if options.tcp { ";transport=tcp" } else { "" };
        let password = match self.trouble {
            Some(Trouble::WrongPassword) => "not it",
            _ => &self.password,
        };
        Registration::builder(
            format!("sip:{registrar}{transport}"),
            format!("sip:{}@trunks.example", self.name),
        )
        .outbound_auth(Credentials::password(self.name.as_str(), password))
        .contact_user(self.name.as_str())
        .expiration(options.expires)
        .max_random_initial_delay(options.spread)
        // A minute, the default, is long for somebody who watches.
        .retry_interval(Duration::from_secs(10))
        .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Options, String> {
        Options::parse(args.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_are_taken_and_mistakes_named() {
        assert_eq!(parse(""), Ok(Options::default()));
        let options =
            parse("--trunks 7 --expires 60 --spread 0 --faults 50 --tcp --seconds 9 --plain");
        let options = options.expect("flags");
        assert_eq!((options.trunks, options.faults), (7, 50));
        assert_eq!(options.spread, Duration::ZERO);
        assert!(options.tcp && options.plain && options.seconds.is_some());
        assert_eq!(parse("--trunks").unwrap_err(), "--trunks needs a value");
        assert_eq!(
            parse("--faults 101").unwrap_err(),
            "--faults \"101\" is no number from 0 to 100"
        );
        assert_eq!(
            parse("--fault 503 --fault silence").map(|options| options.kinds),
            Ok(vec![Trouble::Busy, Trouble::NoAnswer])
        );
        assert!(parse("--fault 200").is_err() && parse("--fault").is_err());
        assert_eq!(parse("-h").unwrap_err(), "unknown argument \"-h\"");
    }

    #[test]
    fn the_faulty_ones_are_as_many_as_asked_evenly_spread_and_of_every_kind() {
        let list = |trunks, faults, kinds: &[Trouble]| {
            generate(&Options {
                trunks,
                faults,
                kinds: kinds.to_vec(),
                ..Options::default()
            })
        };
        let trunks = list(1000, 5, &[]);
        let faulty: Vec<_> = (0..1000).filter(|n| trunks[*n].trouble.is_some()).collect();
        assert_eq!(faulty.len(), 50);
        assert!(faulty.windows(2).all(|pair| pair[1] - pair[0] == 20));
        let forbidden = trunks
            .iter()
            .filter(|trunk| trunk.trouble == Some(Trouble::Forbidden));
        assert_eq!(forbidden.count(), 13);
        let silent = list(9, 100, &[Trouble::NoAnswer]);
        assert!(
            silent
                .iter()
                .all(|trunk| trunk.trouble == Some(Trouble::NoAnswer))
        );
        assert!(list(9, 0, &[]).iter().all(|trunk| trunk.trouble.is_none()));
    }
}
