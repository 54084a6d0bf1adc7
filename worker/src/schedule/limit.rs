//! Limits that hold a path up and are not counted by the path alone: of a source address, or of several paths together.

/// One of them. [`Limit::directive`] names its directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Connections of the whole server.
    TotalSmtpOut,
    /// Connections of a virtual MTA.
    VmtaSmtpOut,
    /// Recipients of a virtual MTA in a time.
    VmtaMsgRate,
    /// Bytes of a virtual MTA in a time.
    VmtaDataVolumeRate,
    /// Connections to a destination, of all virtual MTAs.
    DestinationSmtpOut,
    /// Recipients of a destination in a time, by all virtual MTAs.
    DestinationMsgRate,
    /// Connections to a host, by its name.
    MxConnections,
    /// Connections to a host, by its address.
    IpConnections,
    /// Connections of a path that several shards share.
    SmtpOut,
    /// Recipients of such a path in a time.
    MsgRate,
    /// Recipients of such a path in an hour.
    MsgPerHour,
    /// Bytes of such a path in a time.
    DataVolumeRate,
    /// New connections of such a path in a time.
    ConnectRate,
    /// Time between two new connections of such a path.
    RampUp,
    /// Connections from a source address to a destination.
    SourceSmtpOut,
    /// New connections from it in a time.
    SourceConnectRate,
    /// Recipients from it in a time.
    SourceMsgRate,
    /// Bytes from it in a time.
    SourceDataVolumeRate,
}

/// Whose limit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The server's.
    Server,
    /// A virtual MTA's, over all destinations.
    VirtualMta,
    /// A destination's, over all virtual MTAs.
    Destination,
    /// One of the receiver's hosts'.
    Host,
    /// A path's, over all shards that own its destination.
    Path,
    /// A source address's at a destination.
    Source,
}

impl Limit {
    /// The directive that sets it.
    pub fn directive(self) -> &'static str {
        self.facts().0
    }

    /// Whose it is.
    pub fn holder(self) -> Holder {
        self.facts().1
    }

    /// It counts what happens in a time, and lets more happen when that is over. Of others something is given back.
    pub fn is_rate(self) -> bool {
        self.facts().2
    }

    fn facts(self) -> (&'static str, Holder, bool) {
        match self {
            Limit::TotalSmtpOut => ("total-max-smtp-out", Holder::Server, false),
            Limit::VmtaSmtpOut => ("max-smtp-out", Holder::VirtualMta, false),
            Limit::VmtaMsgRate => ("max-smtp-msg-rate", Holder::VirtualMta, true),
            Limit::VmtaDataVolumeRate => ("max-smtp-data-volume-rate", Holder::VirtualMta, true),
            Limit::DestinationSmtpOut => ("destination-max-smtp-out", Holder::Destination, false),
            Limit::DestinationMsgRate => ("destination-max-msg-rate", Holder::Destination, true),
            Limit::MxConnections => ("mx-connection-limit", Holder::Host, false),
            Limit::IpConnections => ("ip-connection-limit", Holder::Host, false),
            Limit::SmtpOut => ("max-smtp-out", Holder::Path, false),
            Limit::MsgRate => ("max-msg-rate", Holder::Path, true),
            Limit::MsgPerHour => ("max-msg-per-hour", Holder::Path, true),
            Limit::DataVolumeRate => ("max-data-volume-rate", Holder::Path, true),
            Limit::ConnectRate => ("max-connect-rate", Holder::Path, true),
            Limit::RampUp => ("smtp-out-rampup-interval", Holder::Path, true),
            Limit::SourceSmtpOut => ("source-ip-max-smtp-out", Holder::Source, false),
            Limit::SourceConnectRate => ("source-ip-max-connect-rate", Holder::Source, true),
            Limit::SourceMsgRate => ("source-ip-max-msg-rate", Holder::Source, true),
            Limit::SourceDataVolumeRate => ("source-ip-max-data-volume-rate", Holder::Source, true),
        }
    }
}
