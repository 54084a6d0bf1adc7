<?php
// HOST PORT USER PASSWORD MECHANISM SENDER RECIPIENT: one mail by STARTTLS and AUTH.
require '/usr/share/php/libphp-phpmailer/autoload.php';
[, $host, $port, $user, $password, $mechanism, $sender, $recipient] = $argv;
$m = new PHPMailer\PHPMailer\PHPMailer(true);
$m->isSMTP();
$m->Host = $host;
$m->Port = (int) $port;
$m->SMTPAuth = true;
$m->SMTPSecure = 'tls';
$m->SMTPOptions = ['ssl' => ['verify_peer' => false, 'verify_peer_name' => false]];
$m->AuthType = $mechanism;
$m->Username = $user;
$m->Password = $password;
$m->setFrom($sender);
$m->addAddress($recipient);
$m->Subject = 'from PHPMailer';
$m->Body = "line\n.\n..dots\n";
$m->send();
