<?php
// HOST PORT USER PASSWORD SENDER RECIPIENT: one mail by STARTTLS and AUTH; the library chooses the mechanism.
require '/usr/share/php/Symfony/Component/Mailer/autoload.php';
[, $host, $port, $user, $password, $sender, $recipient] = $argv;
$transport = new Symfony\Component\Mailer\Transport\Smtp\EsmtpTransport($host, (int) $port);
$transport->getStream()->setStreamOptions(['ssl' => ['verify_peer' => false, 'verify_peer_name' => false]]);
$transport->setUsername($user);
$transport->setPassword($password);
$mail = (new Symfony\Component\Mime\Email())->from($sender)->to($recipient);
(new Symfony\Component\Mailer\Mailer($transport))->send($mail->subject('from Symfony')->text("line\n.\n..dots\n"));
