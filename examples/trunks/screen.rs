//! The live table.

use crate::trunks::table::{Row, State, Table};
use crate::trunks::tally::Tally;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline};
use std::time::Duration;

/// All that is shown
pub(crate) struct View<'a> {
    /// Where the registrar is, and over what
    pub(crate) registrar: String,
    /// Since the start
    pub(crate) at: Duration,
    pub(crate) table: &'a Table,
    pub(crate) tally: &'a Tally,
    /// Whether the registrar answers
    pub(crate) silent: bool,
    pub(crate) phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// All shall be registered
    Registered,
    /// None shall be, on command
    Unregistered,
    /// All are un-registered, then it ends
    Ending,
}

impl View<'_> {
    pub(crate) fn draw(&self, frame: &mut Frame<'_>) {
        let states = u16::try_from(State::ALL.len()).unwrap_or(u16::MAX) + 2;
        let [title, gauge, rates, answers, lists, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(states),
            Constraint::Length(5),
            Constraint::Length(2),
            Constraint::Fill(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.title(), title);
        frame.render_widget(self.states(gauge), gauge);
        self.rates(frame, rates);
        frame.render_widget(
            Paragraph::new(vec![self.answers(), self.latency()]),
            answers,
        );
        // Failures have more to say than times.
        let [soonest, failing] =
            Layout::horizontal([Constraint::Length(31), Constraint::Fill(1)]).areas(lists);
        frame.render_widget(self.soonest(soonest), soonest);
        frame.render_widget(self.failing(failing), failing);
        frame.render_widget(self.keys(), keys);
    }

    fn title(&self) -> Line<'_> {
        let seconds = self.at.as_secs();
        let registrar = if self.silent {
            " silent ".bold().white().on_red()
        } else {
            "answers".green()
        };
        Line::from(vec![
            format!(" {} trunks at {}, which ", self.table.len(), self.registrar).into(),
            registrar,
            format!("   {:02}:{:02}", seconds / 60, seconds % 60).dim(),
        ])
    }

    fn states(&self, area: Rect) -> Paragraph<'_> {
        let all = self.table.len();
        let width = usize::from(area.width.saturating_sub(LABELS));
        let lines: Vec<_> = State::ALL
            .into_iter()
            .map(|state| {
                let count = self.table.count(state);
                let cells = bar(count, all, width);
                Line::from(vec![
                    Span::raw(format!(" {:<12}{count:>6} ", state.word())),
                    Span::styled("█".repeat(cells), Style::new().fg(colour(state))),
                    Span::styled("·".repeat(width - cells), Style::new().dim()),
                ])
            })
            .collect();
        let title = match self.tally.all_bound_after() {
            Some(after) => format!(" all registered after {} ", seconds(after)),
            None => " states ".to_owned(),
        };
        Paragraph::new(lines).block(Block::bordered().title(title))
    }

    fn rates(&self, frame: &mut Frame<'_>, area: Rect) {
        let rates = self
            .tally
            .rates(self.at, area.width.saturating_sub(2).into());
        let now = rates.last().copied().unwrap_or_default();
        let title = format!(" REGISTERs a second: {now}, at most {} ", self.tally.peak());
        // The newest is at the right edge, however few there are.
        let padding = usize::from(area.width.saturating_sub(2)) - rates.len();
        let data: Vec<_> = std::iter::repeat_n(0, padding).chain(rates).collect();
        let line = Sparkline::default().data(data).fg(Color::Cyan);
        frame.render_widget(line.block(Block::bordered().title(title)), area);
    }

    fn answers(&self) -> Line<'_> {
        let mut parts = vec![format!(" {} REGISTERs:", self.tally.requests()).into()];
        for class in 2..=6 {
            let count = self.tally.answers_of_class(class);
            if count == 0 {
                continue;
            }
            let codes = self.tally.answers();
            let codes: Vec<_> = codes
                .range(class * 100..(class + 1) * 100)
                .map(|(code, count)| format!("{code} {count}"))
                .collect();
            let text = format!("  {class}xx {count} ({})", codes.join(", "));
            parts.push(Span::styled(text, Style::new().fg(class_colour(class))));
        }
        if self.tally.unanswered() > 0 {
            parts.push(format!("  no answer {}", self.tally.unanswered()).red());
        }
        Line::from(parts)
    }

    fn latency(&self) -> Line<'_> {
        Line::from(match self.tally.latency() {
            Some(latency) => format!(" refreshes took {latency}"),
            None => " no refresh yet".to_owned(),
        })
    }

    fn soonest(&self, area: Rect) -> Paragraph<'_> {
        let rows = self.table.soonest();
        let title = format!(" {} next attempts ", rows.len());
        let lines = rows.iter().take(room(area)).map(|row| {
            let next = row.next_in.unwrap_or_default();
            Line::from(vec![
                format!(" {:<11}", row.name).into(),
                format!("{:<8}", row.next()).fg(colour(row.state)),
                format!("{:>8}", seconds(next)).into(),
            ])
        });
        Paragraph::new(lines.collect::<Vec<_>>()).block(Block::bordered().title(title))
    }

    fn failing(&self, area: Rect) -> Paragraph<'_> {
        let rows = self.table.failing();
        let title = format!(" {} whose last attempt failed ", rows.len());
        let lines = rows.iter().take(room(area)).map(|row| {
            Line::from(vec![
                format!(" {:<11}", row.name).fg(colour(row.state)),
                format!("{:<10}", then(row)).into(),
                why(row).into(),
            ])
        });
        Paragraph::new(lines.collect::<Vec<_>>()).block(Block::bordered().title(title))
    }

    fn keys(&self) -> Line<'_> {
        if self.phase == Phase::Ending {
            let bound = self.table.count(State::Registered);
            let text = format!(" un-registering: {bound} to go; q does not wait for it");
            return Line::from(text).bold();
        }
        let kill = if self.silent { "restore" } else { "silence" };
        let all = match self.phase {
            Phase::Registered => "un-register",
            Phase::Unregistered | Phase::Ending => "register",
        };
        Line::from(vec![
            " q".bold(),
            " quit   ".into(),
            "k".bold(),
            format!(" {kill} the registrar   ").into(),
            "u".bold(),
            format!(" {all} all").into(),
        ])
    }
}

/// What follows a failure, and when.
pub(crate) fn then(row: &Row) -> String {
    match (row.next_in, row.state) {
        (Some(next), _) => format!("in {}", seconds(next)),
        (None, State::Stopped) => "stopped".to_owned(),
        (None, _) => "now".to_owned(),
    }
}

/// Why the last attempt failed.
pub(crate) fn why(row: &Row) -> String {
    let failure = row.failure.as_ref().map(ToString::to_string);
    let failure = failure.unwrap_or_default();
    match row.lease_left {
        Some(left) => format!("{failure}; bound for {}", seconds(left)),
        None => failure,
    }
}

/// Cells of a bar: none for none, all for all, and at least one for any.
fn bar(count: usize, all: usize, width: usize) -> usize {
    if count == 0 || all == 0 {
        return 0;
    }
    (count * width / all).clamp(1, width.max(1)).min(width)
}

/// Lines within a border.
fn room(area: Rect) -> usize {
    area.height.saturating_sub(2).into()
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

const fn colour(state: State) -> Color {
    match state {
        State::Registered => Color::Green,
        State::Registering => Color::Cyan,
        State::Waiting => Color::Blue,
        State::Failed => Color::Red,
        State::Stopped => Color::Yellow,
    }
}

const fn class_colour(class: u16) -> Color {
    match class {
        2 => Color::Green,
        3 | 4 => Color::Yellow,
        _ => Color::Red,
    }
}

/// Width of border, word and count beside a bar
const LABELS: u16 = 22;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trunks::table::tests::{after, bound, rejected, table};
    use crate::trunks::tally::tests::{granted, request};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use sip_registration::{Activity, Clock, Event, Failure, RegistrationId, Status, SystemClock};
    use std::time::Instant;

    fn some_trunks(now: Instant) -> Table {
        let waiting = |milliseconds| Activity::Waiting {
            until: after(now, milliseconds),
        };
        let busy = || rejected(503, "Service Unavailable");
        let refused = Failure::CredentialsRefused {
            realm: "test".into(),
        };
        table(
            now,
            vec![
                ("trunk-0001", bound(now, waiting(12_340))),
                ("trunk-0002", bound(now, waiting(400))),
                ("trunk-0003", bound(now, Activity::Registering)),
                (
                    "trunk-0004",
                    Status::new(waiting(9_000)).with_last_failure(busy()),
                ),
                (
                    "trunk-0005",
                    Status::new(Activity::Idle).with_last_failure(refused),
                ),
                (
                    "trunk-0006",
                    bound(now, waiting(5_000)).with_last_failure(Failure::Timeout),
                ),
                ("trunk-0007", Status::new(waiting(2_000))),
            ],
        )
    }

    fn tally() -> Tally {
        let mut tally = Tally::new(7, 1);
        let id = RegistrationId::from_parts(0, 0);
        tally.event(
            Duration::from_millis(1500),
            id,
            &Event::Registered(granted(3)),
        );
        tally.event(Duration::from_secs(60), id, &Event::Refreshed(granted(2)));
        for second in 55..83 {
            for n in 0..second % 5 {
                tally.served(&[request(
                    second * 1000 + n,
                    Some(if n == 0 { 401 } else { 200 }),
                )]);
            }
        }
        tally.served(&[request(82_500, Some(503)), request(82_900, None)]);
        tally
    }

    fn drawn(width: u16, height: u16, silent: bool, phase: Phase) -> String {
        let now = SystemClock::new().now();
        let (table, tally) = (some_trunks(now), tally());
        let view = View {
            registrar: "127.0.0.1:5060 over UDP".to_owned(),
            at: Duration::from_secs(83),
            table: &table,
            tally: &tally,
            silent,
            phase,
        };
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| view.draw(frame)).expect("drawn");
        let text = terminal.backend().to_string();
        let lines = text.lines().map(|line| line.trim_matches('"').trim_end());
        lines.collect::<Vec<_>>().join("\n") + "\n"
    }

    #[test]
    fn a_screen_shows_states_rates_answers_next_attempts_and_failures() {
        let screen = drawn(80, 24, false, Phase::Registered);
        assert_eq!(screen, include_str!("screen.txt"), "\n{screen}");
    }

    #[test]
    fn it_says_when_the_registrar_is_silent_and_what_the_keys_do() {
        let screen = drawn(80, 24, true, Phase::Unregistered);
        assert!(screen.contains("UDP, which  silent "), "{screen}");
        assert!(
            screen.contains("k restore the registrar   u register all"),
            "{screen}"
        );
        let screen = drawn(80, 24, true, Phase::Ending);
        assert!(screen.contains("un-registering: 4 to go"), "{screen}");
    }

    #[test]
    fn a_terminal_may_have_any_size() {
        for (width, height) in [(1, 1), (2, 9), (20, 5), (33, 12), (300, 100)] {
            drawn(width, height, true, Phase::Registered);
        }
    }

    #[test]
    fn a_bar_is_never_empty_for_some_and_full_for_all_only() {
        assert_eq!(
            [
                (0, 9, 10),
                (1, 1000, 10),
                (999, 1000, 10),
                (9, 9, 10),
                (3, 9, 0)
            ]
            .map(|(count, all, width)| bar(count, all, width)),
            [0, 1, 9, 10, 0]
        );
    }
}
