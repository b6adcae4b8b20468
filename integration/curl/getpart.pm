# Stands in for getpart.pm of curl's tests. If CURL_PROXIED is set, messages of HTTP that
# differ from what a test expects only by what a proxy may change are equal.
require "./getpart-own.pm";

# What belongs to one connection, and not to the message: the version (RFC 9110 section
# 6.2), CR before LF (RFC 9112 section 2.2), and these fields (RFC 9110 section 7.6.1).
# A proxy adds Via (section 7.6.3), and Date where there is none (section 6.6.1).
my $hop = qr/^(?:Connection|Proxy-Connection|Keep-Alive|TE|Transfer-Encoding|Via|Date):[^\n]*\n/mi;

sub end_to_end_head {
	my $head = $_[0];
	$head =~ s/\r\n/\n/g;
	$head =~ s/^HTTP\/1\.0 /HTTP\/1.1 / or $head =~ s/^([^\n]* HTTP\/1\.)0\n/${1}1\n/;
	$head =~ s/$hop//g;
	return $head;
}

# The content's chunks may be cut anew (RFC 9112 section 7.1): their sizes are left out.
sub without_chunks {
	my ($text) = @_;
	my $done = "";
	while($text =~ /^([0-9a-f]+)[ \t]*(?:;[^\n]*)?\r?\n/mi) {
		my ($before, $size, $after) = ($`, hex($1), $');
		last if($size > length($after));
		$done .= $before . substr($after, 0, $size);
		$text = substr($after, $size);
		$text =~ s/^\r?\n// if($size);
	}
	return $done . $text;
}

sub end_to_end {
	my $text = join("", @{$_[0]});
	my $chunked = $text =~ /^Transfer-Encoding:[^\n]*chunked/mi;
	$text =~ s/^(?:HTTP\/1\.[01] [^\n]*|[A-Z]+ [^\n]* HTTP\/1\.[01]\r?)\n(?:[^\r\n][^\n]*\n)*/end_to_end_head($&)/gme;
	$text =~ s/^\r\n/\n/gm; # the heads' ends
	return $chunked ? without_chunks($text) : $text;
}

my $exactly = \&compareparts;
no warnings 'redefine';
*compareparts = sub {
	my ($is, $expected) = @_;
	return 0 if($ENV{CURL_PROXIED} && end_to_end($is) eq end_to_end($expected));
	return $exactly->($is, $expected);
};
1;
