package oauth

import (
	"maps"
	"slices"
	"strings"
)

// Authority is a server that gives tokens. In its URLs {tenant} stands for the tenant.
type Authority struct {
	Token     string // where tokens are given
	Authorize string // where a person logs in with a browser
	Device    string // where a device code is given; "" where none is given for mail
	AppScope  string // for an application or service account
	UserScope string // for a person who logs in, space-separated
	Google    bool   // else Microsoft
}

// Authorities are those that may be used, by name.
type Authorities map[string]Authority

const googleMail = "https://mail.google.com/"

// microsoft is one of Microsoft's clouds: where it logs in, and what Exchange Online is there.
func microsoft(login, exchange, delegated string) Authority {
	base := login + "/{tenant}/oauth2/v2.0/"
	return Authority{
		Token: base + "token", Authorize: base + "authorize", Device: base + "devicecode",
		AppScope: exchange + "/.default", UserScope: delegated + "/SMTP.Send offline_access",
	}
}

// Known are the authorities of Microsoft, with its national clouds, and of Google.
func Known() Authorities {
	return Authorities{
		"microsoft":       microsoft("https://login.microsoftonline.com", "https://outlook.office365.com", "https://outlook.office.com"),
		"microsoft-gov":   microsoft("https://login.microsoftonline.us", "https://outlook.office365.us", "https://outlook.office365.us"),
		"microsoft-dod":   microsoft("https://login.microsoftonline.us", "https://webmail.apps.mil", "https://webmail.apps.mil"),
		"microsoft-china": microsoft("https://login.partner.microsoftonline.cn", "https://partner.outlook.cn", "https://partner.outlook.cn"),
		"google": {
			Token: "https://oauth2.googleapis.com/token", Authorize: "https://accounts.google.com/o/oauth2/v2/auth",
			AppScope: googleMail, UserScope: googleMail, Google: true,
		},
	}
}

// At is Known with one server, https://host, in place of those of Microsoft and Google.
func At(server string) Authorities {
	known := Known()
	for name, a := range known {
		for _, url := range []*string{&a.Token, &a.Authorize, &a.Device} {
			if rest := strings.TrimPrefix(*url, "https://"); rest != "" {
				_, path, _ := strings.Cut(rest, "/")
				*url = server + "/" + path
			}
		}
		known[name] = a
	}
	return known
}

// Names lists the authorities.
func (a Authorities) Names() []string { return slices.Sorted(maps.Keys(a)) }

// in returns the authority with its URLs for a tenant of a valid form.
func (a Authority) in(tenant string) Authority {
	for _, url := range []*string{&a.Token, &a.Authorize, &a.Device} {
		*url = strings.ReplaceAll(*url, "{tenant}", tenant)
	}
	return a
}
