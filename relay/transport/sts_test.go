package transport

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseID(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		records []string
		id      string
		ok      bool
	}{
		{[]string{"v=STSv1; id=20160831085700Z;"}, "20160831085700Z", true},
		{[]string{"v=STSv1;id=1"}, "1", true},
		{[]string{"v=STSv1 ; x=y; id=a1 ;"}, "a1", true},
		{[]string{"v=spf1 -all", "v=STSv1; id=1;"}, "1", true},
		{[]string{"v=STSv1; id=1;", "v=STSv1; id=1;"}, "", false},
		{[]string{"v=STSv2; id=1;"}, "", false},
		{[]string{"V=STSv1; id=1;"}, "", false},
		{[]string{"v=STSv1; id=;"}, "", false},
		{[]string{"v=STSv1;"}, "", false},
		{[]string{"v=STSv1; id=a-b;"}, "a-b", false},
		{[]string{"v=STSv1; id=" + strings.Repeat("1", 33)}, strings.Repeat("1", 33), false},
		{nil, "", false},
	} {
		if id, ok := parseID(test.records); ok != test.ok || id != test.id {
			t.Errorf("%q: %q, %v", test.records, id, ok)
		}
	}
}

func TestParseSTS(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		want STS
		err  string
	}{
		{"version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmax_age: 604800\r\n",
			STS{Enforce, []string{"mail.example.com", "*.example.net"}, 604800 * time.Second}, ""},
		{"max_age:86400\nmx:MX.Example.com.\nmode:testing \nversion:STSv1", STS{Testing, []string{"mx.example.com"}, 24 * time.Hour}, ""},
		{"version: STSv1\nmode: none\nmax_age: 86400\n", STS{None, nil, 24 * time.Hour}, ""},
		{"version: STSv1\nmode: enforce\nmode: none\nunknown: x\n\nmx: a.example\nmax_age: 99999999\n", STS{Enforce, []string{"a.example"}, maxAge}, ""},
		{"version: STSv1\nmode: enforce\nmx: a.example\nmax_age: 0\n", STS{Enforce, []string{"a.example"}, minAge}, ""},
		{"version: STSv1\nmode: enforce\nmx: bücher.example\nmx: *.BÜCHER.example\nmax_age: 604800\n",
			STS{Enforce, []string{"xn--bcher-kva.example", "*.xn--bcher-kva.example"}, 604800 * time.Second}, ""},
		{"mode: enforce\nmx: a.example\nmax_age: 86400\n", STS{}, "version"},
		{"version: STSv2\nmode: enforce\nmx: a.example\nmax_age: 86400\n", STS{}, "version"},
		{"version: STSv1\nmode: Enforce\nmx: a.example\nmax_age: 86400\n", STS{}, "mode"},
		{"version: STSv1\nmx: a.example\nmax_age: 86400\n", STS{}, "mode"},
		{"version: STSv1\nmode: enforce\nmx: a.example\n", STS{}, "max_age"},
		{"version: STSv1\nmode: enforce\nmx: a.example\nmax_age: -1\n", STS{}, "max_age"},
		{"version: STSv1\nmode: enforce\nmx: a.example\nmax_age: 99999999999\n", STS{}, "max_age"},
		{"version: STSv1\nmode: enforce\nmax_age: 86400\n", STS{}, "no mx"},
		{"version: STSv1\nmode: enforce\nmx: *.*.example\nmax_age: 86400\n", STS{}, "not the name of a host"},
		{"version: STSv1\nmode: enforce\nmx: \nmax_age: 86400\n", STS{}, "not the name of a host"},
		{"version: STSv1\nmode: testing\nmax_age: 86400\n" + strings.Repeat("mx: a.example\n", maxMX+1), STS{}, "more than"},
		{"<html>", STS{}, "version"},
		{"", STS{}, "version"},
	} {
		got, err := parseSTS(test.text)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%.60q: error %v, want one with %q", test.text, err, test.err)
			}
			continue
		}
		if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
			t.Errorf("%.60q: %v %s", test.text, err, diff)
		}
	}
}

func TestAllows(t *testing.T) {
	t.Parallel()
	p := STS{MX: []string{"mail.example.com", "*.example.net"}}
	for host, want := range map[string]bool{
		"mail.example.com": true, "MAIL.example.com.": true, "x.mail.example.com": false, "example.com": false,
		"a.example.net": true, "A.EXAMPLE.NET": true, "example.net": false, "a.b.example.net": false, ".example.net": false, "aexample.net": false, "": false,
	} {
		if got := p.Allows(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}

// A policy comes from a stranger.
func FuzzParseSTS(f *testing.F) {
	f.Add("version: STSv1\nmode: enforce\nmx: *.example.com\nmax_age: 604800\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parseSTS(text)
		if err == nil && (p.MaxAge < minAge || p.MaxAge > maxAge || p.Mode != None && len(p.MX) == 0) {
			t.Errorf("%+v", p)
		}
	})
}
