# Verifies messages with Mail::DKIM; the settings are JSON on the standard input.
use strict;
use warnings;
use JSON::PP;
use Mail::DKIM::Verifier;
use Net::DNS;

my $s = decode_json(do { local $/; <STDIN> });

{
	no warnings 'redefine';
	*Mail::DKIM::DNS::query = sub {
		my ($name, $type) = @_;
		my $record = $s->{Records}{$name};
		$@ = defined $record ? 'NOERROR' : 'NXDOMAIN';
		return unless defined $record;
		my @parts = unpack '(a255)*', $record;
		return Net::DNS::RR->new(owner => $name, type => 'TXT', txtdata => \@parts);
	};
}

my @results;
for my $path (@{ $s->{Files} }) {
	open my $file, '<:raw', $path or die "$path: $!";
	my $verifier = Mail::DKIM::Verifier->new;
	$verifier->PRINT(do { local $/; <$file> });
	$verifier->CLOSE;
	my @found = map { { Algorithm => $_->algorithm, Domain => $_->domain, Valid => $_->result eq 'pass' ? JSON::PP::true : JSON::PP::false } } $verifier->signatures;
	push @results, \@found;
}
print encode_json(\@results);
