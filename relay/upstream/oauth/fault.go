package oauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/oauth2"
)

// Fault says why there is no token, and what to do.
type Fault struct {
	Code string // "invalid_client", "AADSTS7000215"; "" if the authority did not say one
	Text string // what happened; nothing secret
	Do   string // "" if only waiting helps
	// Login says that a person has to log in again, with 'postern upstream login'.
	Login bool
	// Again is how long the authority is not asked again, if this is what a node has heard before; else 0.
	Again time.Duration

	after time.Duration // the authority asked not to come back before
}

// Error implements error.
func (f *Fault) Error() string {
	text := f.Text
	if f.Code != "" {
		text = f.Code + ": " + text
	}
	if f.Do != "" {
		text = strings.TrimSuffix(text, ".") + "; " + f.Do
	}
	return text
}

// remembered is the fault with this Error, as the last node that asked has stored it.
func remembered(text string, login bool) *Fault {
	for _, a := range advice {
		if rest, ok := strings.CutSuffix(text, "; "+a.do); ok {
			return &Fault{Text: rest, Do: a.do, Login: login}
		}
	}
	return &Fault{Text: text, Login: login}
}

// advice has what to do for a code, or for a part of the authority's text; the first that matches.
var advice = []struct{ sign, do string }{
	{"AADSTS7000215", "store the secret's value, not its id: 'postern upstream set' with --client-secret-stdin"},
	{"AADSTS7000222", "the client secret has expired: make a new one in Entra, then 'postern upstream set' with --client-secret-stdin"},
	{"AADSTS700016", "the tenant has no such application: check --client-id and --tenant"},
	{"AADSTS90002", "there is no such tenant in this cloud: check --tenant and --authority"},
	{"AADSTS900023", "there is no such tenant in this cloud: check --tenant and --authority"},
	{"AADSTS700027", "upload the certificate to the application in Entra, under certificates and secrets"},
	{"AADSTS700024", "set this machine's clock, or renew the client certificate"},
	{"AADSTS500011", "the tenant has no Exchange Online in this cloud: check --tenant and --authority"},
	{"AADSTS70011", "the tenant has no Exchange Online in this cloud: check --tenant and --authority"},
	{"AADSTS65001", "an administrator of the tenant has to consent to SMTP.SendAsApp, or SMTP.Send for a person's login"},
	{"AADSTS7000218", "allow public client flows for the application in Entra, or give it a secret with --client-secret-stdin"},
	{"AADSTS700025", "the application is a public client: set the upstream without a client secret"},
	{"AADSTS50057", "the user's account is disabled in Entra"},
	{"AADSTS53003", "a conditional access rule of the tenant blocks this: have its administrator exempt the application"},
	{"AADSTS50076", "the tenant requires a second factor: log in again, or use client-credentials"},
	{"short-lived", "set this machine's clock"},
	{"invalid jwt signature", "the key was deleted or is another account's: make a new key and set it with --key-file"},
	{"invalid_client", "check the client id and its secret"},
	{"deleted_client", "the client was deleted at the authority: make a new one, then 'postern upstream set'"},
	{"unauthorized_client", "grant what it asks for: Microsoft, the permission SMTP.SendAsApp with an administrator's consent; " +
		"Google, domain-wide delegation of the scope https://mail.google.com/ to the service account's client id"},
	{"invalid_scope", "the mail permission is not granted to this application"},
	{"access_denied", "the person, or an administrator's rule, did not allow it"},
	{"invalid_grant", "check the subject: it must be a mailbox of the domain that delegated"},
}

var aadsts = regexp.MustCompile(`AADSTS[0-9]{4,9}`)

// faultOf describes an error of a request. It leaves out secrets, even if the authority repeats
// them.
func faultOf(g *Grant, err error, secrets ...string) *Fault {
	var refused *oauth2.RetrieveError
	var silent *url.Error
	switch {
	case errors.As(err, &refused):
		f := refusal(g, refused)
		f.Text = clean(f.Text, append(g.secrets(), secrets...))
		return f
	case errors.As(err, &silent): // its URL says nothing that Err does not
		err = silent.Err
	}
	return &Fault{Text: clean("no token from the authority "+g.Authority+": "+err.Error(), append(g.secrets(), secrets...))}
}

// refusal describes the authority's own answer (RFC 6749 section 5.2).
func refusal(g *Grant, refused *oauth2.RetrieveError) *Fault {
	code, said := refused.ErrorCode, refused.ErrorDescription
	if code == "" { // the package jwt leaves it to its caller
		var body struct {
			Code string `json:"error"`
			Said string `json:"error_description"`
		}
		if json.Unmarshal(refused.Body, &body) == nil {
			code, said = body.Code, body.Said
		}
	}
	status := 0
	f := &Fault{}
	if r := refused.Response; r != nil {
		status = r.StatusCode
		f.after = retryAfter(r)
	}
	if !printable(code, 64) {
		code = ""
	}
	f.Code = code
	switch {
	case code != "":
		f.Text = "the authority " + g.Authority + " gives no token"
		if said != "" {
			f.Text += ": " + said
		}
	case status >= 300 && status < 400:
		f.Text = fmt.Sprintf("the authority %s answered %d, and redirects are not followed", g.Authority, status)
	default:
		f.Text = fmt.Sprintf("the authority %s answered %d", g.Authority, status)
	}
	if microsofts := aadsts.FindString(said); microsofts != "" {
		f.Code = microsofts
	}
	if code == "" || code == "temporarily_unavailable" || status >= 500 || status == http.StatusTooManyRequests {
		return f
	}
	f.Login = g.Kind == RefreshToken && (code == "invalid_grant" || strings.HasSuffix(code, "_required"))
	f.Do = whatToDo(f, code, said)
	if off := clockOff(refused.Response); off != "" {
		f.Do = strings.TrimPrefix(f.Do+"; "+off, "; ")
	}
	return f
}

func whatToDo(f *Fault, code, said string) string {
	said = strings.ToLower(said)
	for _, a := range advice {
		if a.sign == f.Code || a.sign == code || strings.Contains(said, a.sign) {
			if f.Login && a.sign == "invalid_grant" {
				break
			}
			return a.do
		}
	}
	if f.Login {
		return "log in again with 'postern upstream login'"
	}
	return ""
}

// clockOff compares this machine's clock with the authority's: assertions contain times.
func clockOff(r *http.Response) string {
	if r == nil {
		return ""
	}
	at, err := http.ParseTime(r.Header.Get("Date"))
	if err != nil {
		return ""
	}
	switch off := time.Since(at).Round(time.Minute); {
	case off >= 3*time.Minute:
		return fmt.Sprintf("this machine's clock is %v ahead of the authority's", off)
	case off <= -3*time.Minute:
		return fmt.Sprintf("this machine's clock is %v behind the authority's", -off)
	}
	return ""
}

// retryAfter is what the header of that name asks for in seconds, at most an hour.
func retryAfter(r *http.Response) time.Duration {
	n, err := strconv.Atoi(r.Header.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(min(n, 3600)) * time.Second
}

// maxSaid bounds an authority's text in a Fault, in octets.
const maxSaid = 600

// clean puts a text on one line, without secrets, bounded, and without what steers a terminal or
// cannot be seen.
func clean(text string, secrets []string) string {
	for _, secret := range secrets {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "…")
			text = strings.ReplaceAll(text, url.QueryEscape(secret), "…")
		}
	}
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsGraphic(r) }), " ")
	if len(text) > maxSaid {
		text = text[:maxSaid] + "…"
	}
	return strings.ToValidUTF8(text, "")
}
