# HOST PORT USER PASSWORD MECHANISM SENDER RECIPIENT: one mail by STARTTLS and AUTH.
use strict;
use Authen::SASL;
use Net::SMTP;
my ($host, $port, $user, $password, $mechanism, $sender, $recipient) = @ARGV;
my $s = Net::SMTP->new($host, Port => $port, Hello => 'client.test', Timeout => 20) or die "$@";
$s->starttls(SSL_verify_mode => 0) or die $s->message;
my $sasl = Authen::SASL->new(mechanism => $mechanism, callback => { user => $user, pass => $password, authname => '' });
$s->auth($sasl) or die $s->message;
$s->mail($sender) && $s->to($recipient) or die $s->message;
$s->data("Subject: from Net::SMTP\n\nline\n.\n..dots\n") or die $s->message;
$s->quit;
