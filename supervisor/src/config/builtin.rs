//! The configuration of a server that was given none.

/// Its text; `sluice run` without `--config`.
pub const TEXT: &str = "\
smtp-listener 127.0.0.1:2525
http-mgmt-port 8080
<source 127.0.0.1>
    always-allow-relaying yes
    process-x-virtual-mta yes
    process-x-job yes
    add-date-header yes
    add-message-id-header yes
</source>
<acct-file acct/acct.csv>
    records d,b,t,r
</acct-file>
";
