//! Directives in force: for one path ([`DomainRules`]) and for one client ([`SourceRules`]).
//!
//! The snapshot holds sparse settings (key and value); a worker resolves them to these plain
//! structures when a path or a session begins. Defaults are stated here and nowhere else.

#![allow(missing_docs)] // for what derive(Archive) generates beside the documented types

use std::net::IpAddr;
use std::time::Duration;

use crate::network::Network;

use rkyv::{Archive, Deserialize, Serialize};

/// A parsed value. Absent limits are 0, of connections of a queue [`ANY_CONNECTIONS`], and absent durations [`NEVER_MS`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug))]
pub enum Value {
    /// yes, no
    Flag(bool),
    /// A count, a size in bytes, or a choice by its position.
    Number(u64),
    /// A duration in milliseconds.
    Millis(u64),
    /// Durations in milliseconds.
    MillisList(Vec<u64>),
    /// `count` events in `per_ms`; a count of 0 is unlimited.
    Rate {
        /// Events.
        count: u64,
        /// Window in milliseconds.
        per_ms: u64,
    },
    /// A limit for the source addresses in a network: a count, or a rate when `per_ms` is
    /// not 0.
    PerNetwork {
        /// The network.
        network: Network,
        /// How many.
        count: u64,
        /// Window in milliseconds; 0 for a plain count.
        per_ms: u64,
    },
    /// Anything else, as written.
    Text(String),
    /// Texts.
    TextList(Vec<String>),
}

/// The first key of directives that no structure here takes.
pub const PENDING: u16 = 0x4000;

/// As many connections as there may be: what `unlimited` stands for where 0 is none at all.
pub const ANY_CONNECTIONS: u64 = u64::MAX;

/// The duration that `never` stands for.
pub const NEVER_MS: u64 = u64::MAX / 4;

/// A limit of `count` events in any window of `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    /// Events; 0 is unlimited.
    pub count: u64,
    /// The window.
    pub per: Duration,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Rate = Rate { count: 0, per: Duration::ZERO };

    /// `n` an hour; 0 is unlimited.
    pub fn per_hour(n: u64) -> Rate {
        Rate { count: n, per: minutes(60) }
    }
}

/// One directive set at one place.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(derive(Debug))]
pub struct Setting {
    /// Number of the [`DomainKey`] or [`SourceKey`]; from [`PENDING`] on of a directive that
    /// is known and not in force.
    pub key: u16,
    /// File it comes from, by its place in the snapshot's list.
    pub file: u16,
    /// Line of the file, from 1.
    pub line: u32,
    /// Its value.
    pub value: Value,
}

/// Conversion from the archived value; a wrong type is a bug of the compiler of the
/// configuration and leaves the default in force.
trait FromValue: Sized {
    /// Types of the directive table whose values this takes.
    const KINDS: &[&str];
    fn from_value(v: &ArchivedValue) -> Option<Self>;

    /// Takes the place of what is in force, or joins it where lines add up.
    fn apply(&mut self, v: &ArchivedValue) {
        if let Some(x) = Self::from_value(v) {
            *self = x;
        }
    }
}

/// Not set, or set to a value.
impl<T: FromValue> FromValue for Option<T> {
    const KINDS: &[&str] = T::KINDS;
    fn from_value(v: &ArchivedValue) -> Option<Self> {
        T::from_value(v).map(Some)
    }
}

/// A limit for each source address, by the network that it lies in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PerSource(Vec<(Network, Rate)>);

impl PerSource {
    /// The limit of one address; of several networks the narrowest counts. A plain count has
    /// no window.
    pub fn of(&self, ip: IpAddr) -> Rate {
        let found = self.0.iter().filter(|(n, _)| n.contains(ip)).max_by_key(|(n, _)| n.bits);
        found.map(|(_, r)| *r).unwrap_or_default()
    }

    /// The limits of all networks.
    pub fn rates(&self) -> impl Iterator<Item = Rate> {
        self.0.iter().map(|(_, rate)| *rate)
    }

    /// Limits nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(Network, Rate)> for PerSource {
    fn from_iter<T: IntoIterator<Item = (Network, Rate)>>(limits: T) -> Self {
        PerSource(limits.into_iter().collect())
    }
}

impl FromValue for PerSource {
    const KINDS: &[&str] = &["args"];
    fn from_value(v: &ArchivedValue) -> Option<Self> {
        let ArchivedValue::PerNetwork { network, count, per_ms } = v else { return None };
        let network = Network { base: network.base, bits: network.bits };
        let rate = Rate { count: count.to_native(), per: Duration::from_millis(per_ms.to_native()) };
        Some([(network, rate)].into_iter().collect())
    }

    fn apply(&mut self, v: &ArchivedValue) {
        for (network, rate) in Self::from_value(v).into_iter().flat_map(|p| p.0) {
            self.0.retain(|(n, _)| *n != network);
            self.0.push((network, rate));
        }
    }
}

impl FromValue for bool {
    const KINDS: &[&str] = &["flag"];
    fn from_value(v: &ArchivedValue) -> Option<Self> {
        matches!(v, ArchivedValue::Flag(_)).then(|| matches!(v, ArchivedValue::Flag(true)))
    }
}

impl FromValue for u64 {
    const KINDS: &[&str] = &["number", "connections", "size", "enum"];
    fn from_value(v: &ArchivedValue) -> Option<Self> {
        if let ArchivedValue::Number(n) = v { Some(n.to_native()) } else { None }
    }
}

impl FromValue for Duration {
    const KINDS: &[&str] = &["duration", "grace"];
    fn from_value(v: &ArchivedValue) -> Option<Self> {
        if let ArchivedValue::Millis(n) = v { Some(Duration::from_millis(n.to_native())) } else { None }
    }
}

impl FromValue for Vec<Duration> {
    const KINDS: &[&str] = &["durations"];
    fn from_value(v: &ArchivedValue) -> Option<Self> {
        if let ArchivedValue::MillisList(l) = v {
            Some(l.iter().map(|n| Duration::from_millis(n.to_native())).collect())
        } else {
            None
        }
    }
}

impl FromValue for Rate {
    const KINDS: &[&str] = &["rate", "data-rate"];
    fn from_value(v: &ArchivedValue) -> Option<Self> {
        if let ArchivedValue::Rate { count, per_ms } = v {
            Some(Rate { count: count.to_native(), per: Duration::from_millis(per_ms.to_native()) })
        } else {
            None
        }
    }
}

impl FromValue for String {
    const KINDS: &[&str] = &[
        "text",
        "email",
        "template",
        "word",
        "ref",
        "hosts",
        "queue",
        "domain",
        "file",
        "certificate",
        "ciphers",
        "tls13-ciphers",
        "identity",
    ];
    fn from_value(v: &ArchivedValue) -> Option<Self> {
        if let ArchivedValue::Text(t) = v { Some(t.as_str().to_owned()) } else { None }
    }
}

impl FromValue for Vec<String> {
    const KINDS: &[&str] = &["list", "headers", "field-names", "emails", "refs", "categories"];
    fn from_value(v: &ArchivedValue) -> Option<Self> {
        if let ArchivedValue::TextList(l) = v { Some(l.iter().map(|t| t.as_str().to_owned()).collect()) } else { None }
    }
}

macro_rules! rules {
    ($(#[$doc:meta])* $rules:ident, $key:ident { $( $name:literal $variant:ident $field:ident: $type:ty = $default:expr; )* }) => {
        /// Numbers of the directives of one scope, as they stand in the snapshot: append only.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[allow(missing_docs)]
        pub enum $key { $( $variant ),* }

        impl $key {
            /// The directive of this name, if it is in force in this scope.
            pub fn named(name: &str) -> Option<Self> {
                match name { $( $name => Some(Self::$variant), )* _ => None }
            }

            /// The directive's name.
            pub fn name(self) -> &'static str {
                match self { $( Self::$variant => $name ),* }
            }

            /// Types of the directive table whose values it takes.
            pub fn kinds(self) -> &'static [&'static str] {
                match self { $( Self::$variant => <$type as FromValue>::KINDS ),* }
            }
        }

        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)]
        pub struct $rules { $( pub $field: $type ),* }

        impl Default for $rules {
            fn default() -> Self { $rules { $( $field: $default ),* } }
        }

        impl $rules {
            /// Lets a setting take the place of what is in force.
            pub fn apply(&mut self, setting: &ArchivedSetting) {
                $( if setting.key.to_native() == $key::$variant as u16 {
                    FromValue::apply(&mut self.$field, &setting.value);
                    return;
                } )*
            }
        }
    };
}

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

rules! {
    /// Directives in force for one path (destination and virtual MTA). Names are those of
    /// the directives; counts of 0 mean unlimited, but for the connections of `max-smtp-out`.
    DomainRules, DomainKey {
        "max-smtp-out" MaxSmtpOut max_smtp_out: u64 = 20;
        "max-msg-per-connection" MaxMsgPerConnection max_msg_per_connection: u64 = 0;
        "max-rcpt-per-transaction" MaxRcptPerTransaction max_rcpt_per_transaction: u64 = 1000;
        "max-msg-rate" MaxMsgRate max_msg_rate: Rate = Rate::UNLIMITED;
        "max-errors-per-connection" MaxErrorsPerConnection max_errors_per_connection: u64 = 0;
        "use-starttls" UseStarttls use_starttls: bool = true;
        "require-starttls" RequireStarttls require_starttls: bool = false;
        "use-dane" UseDane use_dane: bool = true;
        "use-mta-sts" UseMtaSts use_mta_sts: bool = true;
        "reuse-ssl-session" ReuseSslSession reuse_ssl_session: bool = true;
        "smtp-tls-allow-tlsv1.2" SmtpTlsAllowTlsv12 smtp_tls_allow_tlsv12: bool = true;
        "smtp-tls-allow-tlsv1.3" SmtpTlsAllowTlsv13 smtp_tls_allow_tlsv13: bool = true;
        "smtp-tls-ca-file" SmtpTlsCaFile smtp_tls_ca_file: String = String::new();
        "smtp-tls-ciphers" SmtpTlsCiphers smtp_tls_ciphers: String = String::new();
        "smtp-tls-tlsv1.3-ciphersuites" SmtpTlsTlsv13Ciphersuites smtp_tls_tlsv13_ciphersuites: String = String::new();
        "smtp-client-certificate" SmtpClientCertificate smtp_client_certificate: String = String::new();
        "retry-after" RetryAfter retry_after: Vec<Duration> = vec![minutes(10)];
        "retry-recipients-after" RetryRecipientsAfter retry_recipients_after: Duration = minutes(10);
        "retry-upon-new-mail" RetryUponNewMail retry_upon_new_mail: bool = false;
        "bounce-after" BounceAfter bounce_after: Duration = minutes(4 * 1440 + 720);
        "notify-of-delay-every" NotifyOfDelayEvery notify_of_delay_every: Duration = minutes(240);
        "bounce-upon-no-mx" BounceUponNoMx bounce_upon_no_mx: Duration = Duration::from_millis(NEVER_MS);
        "bounce-upon-5xx-greeting" BounceUpon5xxGreeting bounce_upon_5xx_greeting: bool = true;
        "smtp-hosts" SmtpHosts smtp_hosts: String = String::new();
        "default-smtp-port" DefaultSmtpPort default_smtp_port: u64 = 25;
        "mx-connection-attempts" MxConnectionAttempts mx_connection_attempts: u64 = 10;
        "ip-preference" IpPreference ip_preference: u64 = 0;
        "pix-bug-workaround" PixBugWorkaround pix_bug_workaround: bool = true;
        "connect-timeout" ConnectTimeout connect_timeout: Duration = minutes(2);
        "smtp-greeting-timeout" SmtpGreetingTimeout smtp_greeting_timeout: Duration = minutes(5);
        "smtp-multiple-line-response-timeout" SmtpMultipleLineResponseTimeout smtp_multiple_line_response_timeout: Duration = minutes(5);
        "data-send-timeout" DataSendTimeout data_send_timeout: Duration = minutes(3);
        "smtp-data-termination-timeout" SmtpDataTerminationTimeout smtp_data_termination_timeout: Duration = minutes(10);
        "connection-idle-timeout" ConnectionIdleTimeout connection_idle_timeout: Duration = Duration::ZERO;
        "ignore-8bitmime" Ignore8bitmime ignore_8bitmime: bool = false;
        "ignore-chunking" IgnoreChunking ignore_chunking: bool = false;
        "ignore-pipelining" IgnorePipelining ignore_pipelining: bool = false;
        "ignore-dsn" IgnoreDsn ignore_dsn: bool = false;
        "disable-acct-records" DisableAcctRecords disable_acct_records: Vec<String> = Vec::new();
        "max-msg-per-hour" MaxMsgPerHour max_msg_per_hour: u64 = 0;
        "max-data-volume-rate" MaxDataVolumeRate max_data_volume_rate: Rate = Rate::UNLIMITED;
        "max-connect-rate" MaxConnectRate max_connect_rate: Rate = Rate::UNLIMITED;
        "smtp-out-rampup-interval" SmtpOutRampupInterval smtp_out_rampup_interval: Duration = Duration::ZERO;
        "source-ip-max-smtp-out" SourceIpMaxSmtpOut source_ip_max_smtp_out: PerSource = PerSource::default();
        "source-ip-max-connect-rate" SourceIpMaxConnectRate source_ip_max_connect_rate: PerSource = PerSource::default();
        "source-ip-max-msg-rate" SourceIpMaxMsgRate source_ip_max_msg_rate: PerSource = PerSource::default();
        "source-ip-max-data-volume-rate" SourceIpMaxDataVolumeRate source_ip_max_data_volume_rate: PerSource = PerSource::default();
        "destination-max-smtp-out" DestinationMaxSmtpOut destination_max_smtp_out: u64 = 0;
        "destination-max-msg-rate" DestinationMaxMsgRate destination_max_msg_rate: Rate = Rate::UNLIMITED;
        "smtp-pattern-list" SmtpPatternList smtp_pattern_list: String = String::new();
        "backoff-policy" BackoffPolicy backoff_policy: Option<u64> = None;
        "backoff-max-smtp-out" BackoffMaxSmtpOut backoff_max_smtp_out: Option<u64> = None;
        "backoff-max-msg-rate" BackoffMaxMsgRate backoff_max_msg_rate: Option<Rate> = None;
        "backoff-max-msg-per-hour" BackoffMaxMsgPerHour backoff_max_msg_per_hour: Option<u64> = None;
        "backoff-max-data-volume-rate" BackoffMaxDataVolumeRate backoff_max_data_volume_rate: Option<Rate> = None;
        "backoff-max-connect-rate" BackoffMaxConnectRate backoff_max_connect_rate: Option<Rate> = None;
        "backoff-retry-after" BackoffRetryAfter backoff_retry_after: Option<Vec<Duration>> = None;
        "backoff-to-normal-after" BackoffToNormalAfter backoff_to_normal_after: Option<Duration> = None;
        "backoff-to-normal-after-delivery" BackoffToNormalAfterDelivery backoff_to_normal_after_delivery: Option<bool> = None;
        "backoff-return-steps" BackoffReturnSteps backoff_return_steps: u64 = 4;
        "backoff-upon-all-sources-disabled" BackoffUponAllSourcesDisabled backoff_upon_all_sources_disabled: bool = false;
        "backoff-notify" BackoffNotify backoff_notify: Vec<String> = Vec::new();
        "disabled-source-ip-notify" DisabledSourceIpNotify disabled_source_ip_notify: Vec<String> = Vec::new();
        "reenable-source-ip-after" ReenableSourceIpAfter reenable_source_ip_after: Duration = minutes(60);
        "reroute-to-virtual-mta" RerouteToVirtualMta reroute_to_virtual_mta: String = String::new();
        "backoff-reroute-to-virtual-mta" BackoffRerouteToVirtualMta backoff_reroute_to_virtual_mta: String = String::new();
        "queue-priority" QueuePriority queue_priority: u64 = 50;
        "allow-priority-interruption" AllowPriorityInterruption allow_priority_interruption: bool = true;
        "allow-priority-interruption-during-transfer" AllowPriorityInterruptionDuringTransfer allow_priority_interruption_during_transfer: bool = false;
        "reserved-smtp-out" ReservedSmtpOut reserved_smtp_out: u64 = 0;
        "reserved-priority" ReservedPriority reserved_priority: u64 = 75;
        "mx-rollup" MxRollup mx_rollup: String = String::new();
        "disable-mx-rollup" DisableMxRollup disable_mx_rollup: bool = false;
        "queue-to" QueueTo queue_to: String = String::new();
        "pool-adaptive" PoolAdaptive pool_adaptive: bool = true;
        "pool-floor" PoolFloor pool_floor: u64 = 1;
        "pool-probe-interval" PoolProbeInterval pool_probe_interval: Duration = Duration::from_secs(10);
        "type" DeliveryType delivery_type: u64 = 0;
        "discard-as-bounce" DiscardAsBounce discard_as_bounce: bool = false;
        "file-format" FileFormat file_format: u64 = 0;
        "file-destination" FileDestination file_destination: String = String::new();
        "command" Command command: String = String::new();
        "macro-variables-preserve-case" MacroVariablesPreserveCase macro_variables_preserve_case: bool = false;
        "spread" Spread spread: u64 = 1;
        "dkim-sign" DkimSign dkim_sign: u64 = 1;
        "dkim-add-body-limit" DkimAddBodyLimit dkim_add_body_limit: bool = false;
        "dkim-add-timestamp" DkimAddTimestamp dkim_add_timestamp: bool = false;
        "dkim-algorithm" DkimAlgorithm dkim_algorithm: Option<u64> = None;
        "dkim-body-canon" DkimBodyCanon dkim_body_canon: u64 = 1;
        "dkim-headers-canon" DkimHeadersCanon dkim_headers_canon: u64 = 1;
        "dkim-expire-after" DkimExpireAfter dkim_expire_after: Duration = Duration::from_millis(NEVER_MS);
        "dkim-query-method" DkimQueryMethod dkim_query_method: String = String::new();
        "dkim-headers" DkimHeaders dkim_headers: Vec<String> = Vec::new();
        "dkim-identity" DkimIdentity dkim_identity: String = String::new();
        "dkim-identity-fallback" DkimIdentityFallback dkim_identity_fallback: String = String::new();
        "dkim-disallow-adding-headers" DkimDisallowAddingHeaders dkim_disallow_adding_headers: Vec<String> = Vec::new();
        "second-dkim-sign" SecondDkimSign second_dkim_sign: bool = false;
        "second-dkim-add-body-limit" SecondDkimAddBodyLimit second_dkim_add_body_limit: Option<bool> = None;
        "second-dkim-add-timestamp" SecondDkimAddTimestamp second_dkim_add_timestamp: Option<bool> = None;
        "second-dkim-algorithm" SecondDkimAlgorithm second_dkim_algorithm: Option<u64> = None;
        "second-dkim-body-canon" SecondDkimBodyCanon second_dkim_body_canon: Option<u64> = None;
        "second-dkim-headers-canon" SecondDkimHeadersCanon second_dkim_headers_canon: Option<u64> = None;
        "second-dkim-expire-after" SecondDkimExpireAfter second_dkim_expire_after: Option<Duration> = None;
        "second-dkim-query-method" SecondDkimQueryMethod second_dkim_query_method: Option<String> = None;
        "second-dkim-headers" SecondDkimHeaders second_dkim_headers: Option<Vec<String>> = None;
        "second-dkim-identity" SecondDkimIdentity second_dkim_identity: Option<String> = None;
        "second-dkim-identity-fallback" SecondDkimIdentityFallback second_dkim_identity_fallback: Option<String> = None;
        "second-dkim-disallow-adding-headers" SecondDkimDisallowAddingHeaders second_dkim_disallow_adding_headers: Option<Vec<String>> = None;
        "suppress-on" SuppressOn suppress_on: Vec<String> = Vec::new();
        "suppress-after" SuppressAfter suppress_after: Rate = Rate { count: 1, per: minutes(1440) };
        "suppress-for" SuppressFor suppress_for: Duration = Duration::from_millis(NEVER_MS);
        "suppress-in" SuppressIn suppress_in: u64 = 0;
        "smtp-421-means-mx-unavailable" Smtp421MeansMxUnavailable smtp_421_means_mx_unavailable: bool = false;
        "remove-header" RemoveHeader remove_header: Vec<String> = Vec::new();
        "check-spf-outbound" CheckSpfOutbound check_spf_outbound: bool = false;
        "auth-username" AuthUsername auth_username: String = String::new();
        "auth-password" AuthPassword auth_password: String = String::new();
        "virtual-mta-pool" VirtualMtaPool virtual_mta_pool: String = String::new();
        "deliver-local-dsn" DeliverLocalDsn deliver_local_dsn: bool = true;
        "replace-smtp-421-service-response" ReplaceSmtp421ServiceResponse replace_smtp_421_service_response: bool = false;
        "retry-after-dns-error" RetryAfterDnsError retry_after_dns_error: Option<Duration> = None;
        "bcc-upon-delivery" BccUponDelivery bcc_upon_delivery: String = String::new();
    }
}

rules! {
    /// Directives in force for one SMTP client, merged from all `<source>` blocks that
    /// contain its address and the listener's named source.
    SourceRules, SourceKey {
        "always-allow-relaying" AlwaysAllowRelaying always_allow_relaying: bool = false;
        "smtp-service" SmtpService smtp_service: bool = true;
        "add-date-header" AddDateHeader add_date_header: u64 = 0;
        "add-message-id-header" AddMessageIdHeader add_message_id_header: bool = false;
        "add-received-header" AddReceivedHeader add_received_header: bool = true;
        "hide-message-source" HideMessageSource hide_message_source: bool = false;
        "allow-starttls" AllowStarttls allow_starttls: bool = false;
        "allow-chunking" AllowChunking allow_chunking: bool = true;
        "allow-smtputf8" AllowSmtputf8 allow_smtputf8: bool = true;
        "max-message-size" MaxMessageSize max_message_size: u64 = 0;
        "max-message-hops" MaxMessageHops max_message_hops: u64 = 100;
        "max-rcpt-per-message" MaxRcptPerMessage max_rcpt_per_message: u64 = 0;
        "too-many-rcpts-fails-message" TooManyRcptsFailsMessage too_many_rcpts_fails_message: bool = false;
        "process-x-envid" ProcessXEnvid process_x_envid: bool = false;
        "process-x-job" ProcessXJob process_x_job: bool = false;
        "retain-x-job" RetainXJob retain_x_job: bool = false;
        "process-x-virtual-mta" ProcessXVirtualMta process_x_virtual_mta: bool = false;
        "retain-x-virtual-mta" RetainXVirtualMta retain_x_virtual_mta: bool = false;
        "allow-empty-x-virtual-mta" AllowEmptyXVirtualMta allow_empty_x_virtual_mta: bool = false;
        "reject-invalid-virtual-mta" RejectInvalidVirtualMta reject_invalid_virtual_mta: bool = true;
        "pattern-list" PatternList pattern_list: String = String::new();
        "default-virtual-mta" DefaultVirtualMta default_virtual_mta: String = String::new();
        "suppress-local-dsn" SuppressLocalDsn suppress_local_dsn: bool = false;
        "dsn-return-default" DsnReturnDefault dsn_return_default: u64 = 2;
        "smtp-command-timeout" SmtpCommandTimeout smtp_command_timeout: Duration = minutes(10);
        "smtp-data-timeout" SmtpDataTimeout smtp_data_timeout: Duration = minutes(10);
        "smtp-session-timeout" SmtpSessionTimeout smtp_session_timeout: Duration = minutes(24 * 60);
        "process-x-dkim-options" ProcessXDkimOptions process_x_dkim_options: bool = false;
        "retain-x-dkim-options" RetainXDkimOptions retain_x_dkim_options: bool = false;
        "process-x-dkim-key" ProcessXDkimKey process_x_dkim_key: bool = false;
        "retain-x-dkim-key" RetainXDkimKey retain_x_dkim_key: bool = false;
        "suppression-lists" SuppressionLists suppression_lists: Vec<String> = Vec::new();
        "accept-invalid-recipients" AcceptInvalidRecipients accept_invalid_recipients: bool = false;
        "max-smtp-commands" MaxSmtpCommands max_smtp_commands: u64 = 0;
        "source-group" SourceGroup source_group: String = String::new();
        "max-smtp-in-per-address" MaxSmtpInPerAddress max_smtp_in_per_address: Option<u64> = None;
        "max-smtp-in-per-network" MaxSmtpInPerNetwork max_smtp_in_per_network: Option<u64> = None;
        "require-auth" RequireAuth require_auth: bool = false;
        "remove-header" RemoveHeader remove_header: Vec<String> = Vec::new();
        "remove-received-headers" RemoveReceivedHeaders remove_received_headers: bool = false;
        "retain-x-schedule" RetainXSchedule retain_x_schedule: bool = false;
        "process-x-schedule" ProcessXSchedule process_x_schedule: bool = false;
        "check-spf-inbound" CheckSpfInbound check_spf_inbound: bool = false;
        "reject-spf-check-temperror" RejectSpfCheckTemperror reject_spf_check_temperror: bool = true;
        "reject-spf-check-permerror" RejectSpfCheckPermerror reject_spf_check_permerror: bool = true;
        "reject-spf-check-fail" RejectSpfCheckFail reject_spf_check_fail: bool = true;
        "check-iprev-inbound" CheckIprevInbound check_iprev_inbound: bool = false;
        "reject-iprev-check-temperror" RejectIprevCheckTemperror reject_iprev_check_temperror: bool = false;
        "reject-iprev-check-permerror" RejectIprevCheckPermerror reject_iprev_check_permerror: bool = false;
        "reject-iprev-check-fail" RejectIprevCheckFail reject_iprev_check_fail: bool = false;
        "rewrite-list" RewriteList rewrite_list: String = String::new();
        "allow-auth" AllowAuth allow_auth: bool = true;
        "allow-unencrypted-plain-auth" AllowUnencryptedPlainAuth allow_unencrypted_plain_auth: bool = false;
        "require-starttls-before-auth" RequireStarttlsBeforeAuth require_starttls_before_auth: bool = false;
        "smtp-max-auth-failure-rate" SmtpMaxAuthFailureRate smtp_max_auth_failure_rate: Rate = Rate::UNLIMITED;
        "broken-auth-clients" BrokenAuthClients broken_auth_clients: bool = false;
        "jobid-header" JobidHeader jobid_header: String = String::new();
        "jobid-prefix" JobidPrefix jobid_prefix: String = String::new();
        "bcc" Bcc bcc: String = String::new();
        "auto-qualify-domain" AutoQualifyDomain auto_qualify_domain: bool = true;
        "disconnect-on-transient-error" DisconnectOnTransientError disconnect_on_transient_error: bool = false;
        "add-x-virtual-mta-header" AddXVirtualMtaHeader add_x_virtual_mta_header: bool = false;
        "date-header-time" DateHeaderTime date_header_time: u64 = 0;
        "verp-default" VerpDefault verp_default: bool = false;
        "one-click-unsubscribe" OneClickUnsubscribe one_click_unsubscribe: String = String::new();
        "cfbl-address" CfblAddress cfbl_address: String = String::new();
        "feedback-id" FeedbackId feedback_id: String = String::new();
        "check-spf-inbound-max-void-lookups" CheckSpfInboundMaxVoidLookups check_spf_inbound_max_void_lookups: u64 = 2;
        "trace-spf-check" TraceSpfCheck trace_spf_check: bool = false;
        "trace-iprev-check" TraceIprevCheck trace_iprev_check: bool = false;
    }
}

/// How many virtual MTAs mail goes through at most, each of which reroutes it to the next.
pub const REROUTES_MAX: usize = 8;

/// Another virtual MTA than `via`, where `named` is one.
fn other<'a>(named: &'a str, via: &str) -> Option<&'a str> {
    (!named.is_empty() && !named.eq_ignore_ascii_case(via)).then_some(named)
}

impl DomainRules {
    /// The virtual MTA or pool that mail of virtual MTA `via` always goes to instead.
    pub fn rerouted_to(&self, via: &str) -> Option<&str> {
        other(&self.reroute_to_virtual_mta, via)
    }

    /// The one that it goes to while its path is in backoff.
    pub fn rerouted_in_backoff_to(&self, via: &str) -> Option<&str> {
        other(&self.backoff_reroute_to_virtual_mta, via)
    }

    /// The same for connections to receivers: mail waits.
    pub fn withheld(&self) -> Option<&'static str> {
        match () {
            () if !self.auth_username.is_empty() => Some("auth-username"),
            () if !self.auth_password.is_empty() => Some("auth-password"),
            () => None,
        }
    }
}
