package upstream

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/internal/refusal"
	"postern/relay/smtp"
)

// said is a reply as a server writes it.
func said(t testing.TB, line string) smtp.Reply {
	t.Helper()
	r, err := smtp.ReadReply(smtp.NewReader(strings.NewReader(strings.ReplaceAll(line, "\n", "\r\n")+"\r\n")), smtp.ReplyLimits{})
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return r
}

// classified has replies of every provider: what they mean, and of which preset the row is that
// says so, "-" for none.
var classified = []struct {
	preset string
	stage  Stage
	reply  string
	want   string // result scope row's preset [wait]
}{
	// What is said of the mail itself.
	{Generic, StageDot, "250 2.0.0 Ok: queued as 1", "delivered message -"},
	{Generic, StageRcpt, "250 2.1.5 Ok", "later message -"},
	{Generic, StageData, "354 go on", "later message -"},
	{Generic, StageRcpt, "550 5.1.1 No such user", "never recipient -"},
	{Generic, StageRcpt, "550 No such user", "never recipient -"},
	{Generic, StageRcpt, "551 5.1.6 moved", "never recipient -"},
	{Generic, StageRcpt, "552 5.2.2 mailbox full", "never recipient -"},
	{Generic, StageRcpt, "553 5.1.3 bad address", "never recipient -"},
	{Generic, StageRcpt, "554 5.7.1 Relay access denied", "never recipient -"},
	{Generic, StageRcpt, "556 5.1.10 null MX", "never recipient -"},
	{Generic, StageRcpt, "450 4.2.0 Greylisted", "later recipient -"},
	{Generic, StageRcpt, "451 4.7.1 Greylisted", "later recipient -"},
	{Generic, StageRcpt, "452 4.2.2 mailbox full", "later recipient -"},
	{Generic, StageRcpt, "450 4.1.2 domain not found", "later recipient -"},
	{Generic, StageMail, "550 5.7.1 sender refused", "never message -"},
	{Generic, StageMail, "553 5.1.8 sender unknown", "never message -"},
	{Generic, StageMail, "552 5.3.4 too big", "never message -"},
	{Generic, StageMail, "451 4.1.8 sender's domain has no address", "later message -"},
	{Generic, StageData, "554 5.6.0 no", "never message -"},
	{Generic, StageData, "451 4.6.0 wait", "later message -"},
	{Generic, StageDot, "550 5.7.1 spam", "never message -"},
	{Generic, StageDot, "554 5.2.0 something else", "never message -"},
	{Generic, StageDot, "552 5.3.4 too big", "never message -"},
	{Generic, StageDot, "451 4.7.1 wait", "later message -"},
	{Generic, StageDot, "554 Message rejected", "never message -"},
	{Generic, StageAny, "550 5.1.1 no", "never message -"},
	// Before MAIL nothing is final.
	{Generic, StageConnect, "554 5.7.1 no service for you", "later host -"},
	{Generic, StageConnect, "521 5.3.2 no mail here", "later host -"},
	{Generic, StageConnect, "450 4.7.1 wait", "later host -"},
	{Generic, StageConnect, "421 4.7.0 too many connections", "later connection generic"},
	{Generic, StageTLS, "454 4.7.0 TLS not available", "later host -"},
	{Generic, StageTLS, "501 5.5.4 no", "later host -"},
	{Generic, StageAuth, "454 4.7.0 Temporary authentication failure", "later account -"},
	{Generic, StageAuth, "504 5.5.4 no such mechanism", "later account -"},
	{Generic, StageAuth, "550 5.7.30 Basic authentication is not supported", "later account -"},
	// Our account at any server.
	{Generic, StageAuth, "535 5.7.8 Authentication failed", "later account generic"},
	{Generic, StageAuth, "534 5.7.9 Application-specific password required", "later account generic"},
	{Generic, StageAuth, "538 5.7.11 Encryption required", "later account generic"},
	{Generic, StageMail, "530 5.7.0 Authentication required", "later account generic"},
	{Generic, StageMail, "530 Must issue a STARTTLS command first", "later account generic"},
	{Generic, StageRcpt, "530 5.7.1 log in", "later account generic"},
	{Generic, StageMore, "530 5.7.1 log in", "later account generic"},
	{Generic, StageDot, "535 5.7.8 your login has ended", "later account generic"},
	{Generic, StageMail, "550 5.7.1 Authentication required", "later account generic"},
	{Generic, StageMail, "554 5.7.1 AUTHENTICATION\tREQUIRED for relaying", "later account generic"},
	{Generic, StageRcpt, "550 5.7.1 authentication   required", "later account generic"},
	{Generic, StageMore, "503 5.5.1 Authentication required.", "later account generic"},
	{Generic, StageDot, "550 5.7.1 Authentication required", "never message -"},
	{Generic, StageRcpt, "550 5.7.1 <bob@example.net>: Authentication required", "never recipient -"},
	{Generic, StageRcpt, "450 4.7.1 Authentication required", "later recipient -"},
	// Too many recipients.
	{Generic, StageMore, "452 4.5.3 Too many recipients", "later recipient generic"},
	{Generic, StageMore, "452 enough", "later recipient generic"},
	{Generic, StageMore, "552 enough", "later recipient generic"},
	{Generic, StageMore, "552 5.5.3 enough", "later recipient generic"},
	{Generic, StageMore, "550 5.5.3 enough", "later recipient generic"},
	{Generic, StageMore, "554 5.5.3 enough", "later recipient generic"},
	{Generic, StageMore, "451 4.5.3 enough", "later recipient generic"},
	{Generic, StageMore, "550 Too many  recipients", "later recipient generic"},
	{Generic, StageMore, "554 5.7.1 too many recipients for you", "later recipient generic"},
	{Generic, StageMore, "450 too many recipients", "later recipient generic"},
	{Generic, StageMore, "552 5.2.2 mailbox full", "never recipient -"},
	{Generic, StageMore, "550 5.1.1 <too many recipients@one.test> unknown", "never recipient -"},
	{Generic, StageRcpt, "550 5.5.3 too many recipients", "never recipient -"},
	{Generic, StageRcpt, "552 5.5.3 too many recipients", "later message generic"},
	{Generic, StageRcpt, "552 enough", "never recipient -"},
	{Generic, StageDot, "552 5.5.3 too many", "later message generic"},
	// The server's own trouble.
	{Generic, StageMail, "421 4.3.2 Service not available", "later connection generic"},
	{Generic, StageMail, "450 4.7.1 Error: too much mail from 192.0.2.1", "later account generic 1m0s"},
	{Generic, StageRcpt, "450 4.7.1 Error: too many recipients from 192.0.2.1", "later account generic 1m0s"},
	{Generic, StageMore, "450 4.7.1 Error: too many recipients from 192.0.2.1", "later account generic 1m0s"},
	{Generic, StageAuth, "450 4.7.1 Error: too many AUTH commands from 192.0.2.1", "later account generic 1m0s"},
	{Generic, StageMore, "452 4.5.3 Error: too many recipients", "later recipient generic"},
	{Generic, StageRcpt, "450 4.7.1 Client host rejected: greylisted", "later recipient -"},
	{Generic, StageRcpt, "421 4.7.0 slow down", "later connection generic"},
	{Generic, StageRcpt, "451 4.7.500 Server busy. Please try again later", "later host generic"},
	{Generic, StageRcpt, "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation", "later host generic"},
	{Generic, StageMail, "451 4.7.651 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation", "later host generic"},
	{Generic, StageRcpt, "451 4.7.652 The mail server [192.0.2.1] has exceeded the maximum number of connections", "later connection generic"},
	{Generic, StageMail, "452 4.3.1 Insufficient system storage", "later host generic"},
	{Generic, StageDot, "451 4.3.0 queue file write error", "later host generic"},
	{Generic, StageDot, "451 5.3.0 odd", "later message -"},
	// Microsoft 365.
	{"m365", StageMail, "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending", "later connection m365 30s"},
	{"m365", StageDot, "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", "later connection m365 30s"},
	{"m365", StageDot, "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message", "later account m365 1h"},
	{"m365", StageDot, "554 5.2.0 storedrv.submission.exception:SubmissionQuotaExceededException", "later account m365 1h"},
	{"m365", StageMail, "554 5.2.0 SubmissionQuotaExceeded", "later account m365 1h"},
	{"m365", StageDot, "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed", "later sender m365"},
	{"m365", StageDot, "554 5.2.0 SendAsDenied; a@b.test not allowed to send as c@d.test", "later sender m365"},
	{"m365", StageDot, "554 5.2.252 SendAsDenied; a@b.test not allowed to send as c@d.test; STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message", "later sender m365"},
	{"m365", StageDot, "554 5.2.0 STOREDRV.Submission.Exception:MessageTooBig", "never message -"},
	{"m365", StageDot, "554 5.2.0 a virus", "never message -"},
	{"m365", StageRcpt, "554 5.2.0 STOREDRV.Submission.Exception:SendAsDenied", "never recipient -"},
	{"m365", StageDot, "550 5.7.60 SMTP; Client does not have permissions to send as this sender", "later sender m365"},
	{"m365", StageMail, "550 5.7.60 SMTP; Client does not have permissions to send as this sender", "later sender m365"},
	{"m365", StageDot, "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException", "later account m365 1h"},
	{"m365", StageRcpt, "554 5.2.2 mailbox full", "never recipient -"},
	{"m365", StageAuth, "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant", "later account m365"},
	{"m365", StageAuth, "535 5.7.3 Authentication unsuccessful", "later account m365"},
	{"m365", StageAuth, "550 5.7.30 Basic authentication is not supported for Client Submission.", "later account -"},
	{"m365", StageMail, "530 5.7.57 Client not authenticated to send mail", "later account m365"},
	{"m365", StageMail, "550 5.1.8 Access denied, bad outbound sender", "later account m365"},
	{"m365", StageDot, "550 5.1.8 Access denied, bad outbound sender", "later account m365"},
	{"m365", StageDot, "550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients", "later account m365 1h"},
	{"m365", StageDot, "550 5.7.232 Your message can't be sent because your trial tenant has exceeded its limit", "later account m365 1h"},
	{"m365", StageDot, "550 5.7.233 Your message can't be sent because your tenant exceeded its limit", "later account m365 1h"},
	{"m365", StageMail, "550 5.7.705 Access denied, tenant has exceeded threshold", "later account m365 1h"},
	{"m365", StageMail, "550 5.7.708 Access denied, traffic not accepted from this IP", "later account m365"},
	{"m365", StageRcpt, "550 5.7.64 TenantAttribution; Relay Access Denied", "later account m365"},
	{"m365", StageMail, "451 4.7.500 Server busy. Please try again later", "later account m365"},
	{"m365", StageMore, "452 4.5.3 Too many recipients", "later recipient generic"},
	{"m365", StageRcpt, "550 5.1.10 RecipientNotFound", "never recipient -"},
	{"m365", StageRcpt, "550 5.4.5 a limit of another provider", "never recipient -"},
	{"m365", StageDot, "250 2.0.0 OK <1@example.com> [Hostname=X]", "delivered message -"},
	{"m365", StageDot, "421 4.3.2 Service not active", "later connection generic"},
	// Google.
	{"google", StageMail, "550 5.4.5 Daily user sending limit exceeded. For more information on Gmail", "later account google 1h"},
	{"google", StageDot, "550-5.4.5 Daily SMTP relay sending limit exceeded for this user\n550 5.4.5 For more information", "later account google 1h"},
	{"google", StageRcpt, "550 5.4.5 Daily sending quota exceeded", "later account google 1h"},
	{"google", StageMail, "550 5.7.1 Daily SMTP relay limit exceeded for customer", "later account google 1h"},
	{"google", StageMail, "421 4.2.1 The user you are trying to contact is receiving mail too quickly", "later account google"},
	{"google", StageMail, "450 4.2.1 Peak SMTP relay limit exceeded for customer", "later account google"},
	{"google", StageAuth, "454 4.7.0 Too many login attempts, please try again later", "later account google"},
	{"google", StageConnect, "421 4.7.0 Try again later, closing connection. (EHLO)", "later account google"},
	{"google", StageAuth, "534 5.7.9 Application-specific password required", "later account google"},
	{"google", StageAuth, "534-5.7.14 <https://accounts.google.com/signin/continue> Please log in\n534 5.7.14 via your web browser", "later account google"},
	{"google", StageMail, "550 5.7.0 Mail relay denied [192.0.2.1]. Invalid credentials for relay", "later account google"},
	{"google", StageMail, "550 5.7.1 Invalid credentials for relay [192.0.2.1].", "later account google"},
	{"google", StageRcpt, "550 5.1.1 The email account that you tried to reach does not exist", "never recipient -"},
	{"google", StageDot, "550 5.7.1 Our system has detected that this message is likely unsolicited mail", "never message -"},
	{"google", StageDot, "552 5.2.3 Your message exceeded Google's message size limits", "never message -"},
	{"google", StageMore, "452 4.5.3 Your message has too many recipients", "later recipient generic"},
	{"google", StageMore, "550 5.5.3 Too many recipients for this sender", "later recipient generic"},
	{"google", StageDot, "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException", "never message -"},
	// Amazon SES.
	{"ses", StageDot, "454 Throttling failure: Maximum sending rate exceeded.", "later account ses 10s"},
	{"ses", StageDot, "454 Throttling failure: Daily message quota exceeded.", "later account ses 1h"},
	{"ses", StageMail, "454 4.7.0 throttling failure", "later account ses 10s"},
	{"ses", StageDot, "554 Message rejected: Email address is not verified. The following identities failed the check in region EU-CENTRAL-1: a@b.test", "later sender ses"},
	{"ses", StageDot, "554 Access denied: User is not authorized to perform ses:SendRawEmail", "later account ses"},
	{"ses", StageDot, "554 Message rejected: Sending paused for this account.", "later account ses"},
	{"ses", StageDot, "554 Message rejected: Sending suspended for this account.", "later account ses"},
	{"ses", StageDot, "554 Sending paused for this configuration set", "later account ses"},
	{"ses", StageDot, "554 Transaction failed: Duplicate header 'DKIM-Signature'.", "later account ses"},
	{"ses", StageDot, "554 Transaction failed: Address contains illegal characters in domain", "never message -"},
	{"ses", StageDot, "554 Message rejected: Address blacklisted.", "never message -"},
	{"google", StageAuth, "535 5.7.8 Username and Password not accepted. For more information, go to", "later account google"},
	{"ses", StageAuth, "535 Authentication Credentials Invalid", "later account ses"},
	{"ses", StageMail, "530 Authentication required", "later account generic"},
	{"ses", StageConnect, "421 Too many concurrent SMTP connections", "later connection generic"},
	{"ses", StageMail, "451 4.4.2 Timeout waiting for data from client.", "later message -"},
	// MX: we have no account there.
	{"", StageMail, "530 5.7.0 Authentication required", "never message -"},
	{"", StageRcpt, "550 5.7.1 Authentication required", "never recipient -"},
	{"", StageDot, "535 5.7.8 no", "never message -"},
	{"", StageMore, "452 4.5.3 enough", "later recipient generic"},
	{"", StageRcpt, "552 5.5.3 enough", "later message generic"},
	{"", StageDot, "550 5.4.5 Daily user sending limit exceeded", "never message -"},
	{"", StageMail, "421 4.3.2 closing", "later connection generic"},
}

func TestClassified(t *testing.T) {
	t.Parallel()
	if len(classified) < 120 {
		t.Errorf("%d replies", len(classified))
	}
	for _, test := range classified {
		var table *Replies
		if test.preset != "" {
			table = Table(test.preset)
		}
		v := table.Classify(test.stage, said(t, test.reply))
		if got := verdictText(v); got != test.want {
			t.Errorf("%s at %q: %q is %s, want %s", test.preset, test.stage, test.reply, got, test.want)
		}
	}
}

func verdictText(v Verdict) string {
	from := "-"
	if v.Row != nil {
		from = v.Row.From
	}
	text := fmt.Sprintf("%s %s %s", v.Result, v.Scope, from)
	switch wait := v.Wait(); {
	case wait >= time.Hour:
		text += fmt.Sprintf(" %dh", int(wait.Hours()))
	case wait > 0:
		text += " " + wait.String()
	}
	return text
}

// Each row of each preset is reached by some reply above: none is shadowed or misspelt.
func TestEachRowDecides(t *testing.T) {
	t.Parallel()
	for _, name := range Presets() {
		reached := map[*Row]bool{}
		for _, test := range classified {
			if test.preset == name {
				reached[Table(name).Classify(test.stage, said(t, test.reply)).Row] = true
			}
		}
		rows := Table(name).Rows()
		for i := range rows {
			if rows[i].From == name && !reached[&rows[i]] {
				t.Errorf("%s: nothing reaches %s", name, rows[i])
			}
			if rows[i].Why == "" {
				t.Errorf("%s: %s is without a source", name, rows[i])
			}
		}
	}
}

// An address that looks like a quota's text, repeated in the reply for it, reaches no row with
// a text: a user cannot make the mail of others wait.
func TestAddressesReachNoText(t *testing.T) {
	t.Parallel()
	rows := 0
	for _, name := range Presets() {
		for _, row := range Table(name).Rows() {
			if row.Text == "" {
				continue
			}
			rows++
			local := strings.ReplaceAll(row.Text, " ", ".")
			for _, address := range []string{
				local + "@user.test", `"` + row.Text + `"@user.test`, `"` + row.Text + ` x"@user.test`, "x@" + strings.NewReplacer(" ", ".", ":", ".").Replace(row.Text) + ".test",
				local + "+x@user.test", strings.ToUpper(local) + "@user.test", row.Text + "@user.test", row.Text + "x.y@user.test",
			} {
				for _, echo := range []string{"<%s>: %s", "%s: %s", "%s... %s", "<%s> %s", "Recipient address rejected: %s %s", "[%s] %s"} {
					text := fmt.Sprintf(echo, address, row.Text)
					if begins(fold(text), row.Text) {
						t.Errorf("%s: %q reaches it", row, text)
					}
				}
			}
			if !begins(row.Text, row.Text) || !begins(fold("  "+strings.ToUpper(strings.ReplaceAll(row.Text, " ", " \t "))+" now, see a@b.test"), row.Text) {
				t.Errorf("%s: its own text does not reach it", row)
			}
		}
	}
	if rows < 20 {
		t.Errorf("only %d rows", rows)
	}
}

func TestRowForm(t *testing.T) {
	t.Parallel()
	ok := Row{Code: "554", Enhanced: "5.2.0", Text: "Daily quota", Result: Later, Scope: ScopeAccount, Wait: time.Hour}
	for name, change := range map[string]func(*Row){
		"no code": func(w *Row) { w.Code = "" }, "short code": func(w *Row) { w.Code = "55" }, "2yz": func(w *Row) { w.Code = "250" },
		"x first": func(w *Row) { w.Code = "xxx" }, "x in the middle": func(w *Row) { w.Code = "5x4" }, "letters": func(w *Row) { w.Code = "5ab" },
		"enhanced of two": func(w *Row) { w.Enhanced = "5.2" }, "enhanced of words": func(w *Row) { w.Enhanced = "a.b.c" },
		"enhanced of another class": func(w *Row) { w.Enhanced = "4.2.0" }, "enhanced with zeros": func(w *Row) { w.Enhanced = "5.02.0" }, "text with an address": func(w *Row) { w.Text = "x a@b" },
		"long text": func(w *Row) { w.Text = strings.Repeat("x", maxText+1) }, "delivered": func(w *Row) { w.Result = Delivered },
		"no result": func(w *Row) { w.Result = "" }, "never for an account": func(w *Row) { w.Result, w.Wait = Never, 0 },
		"no scope": func(w *Row) { w.Scope = "" }, "odd scope": func(w *Row) { w.Scope = "tenant" }, "odd stage": func(w *Row) { w.Stage = "ehlo" },
		"negative wait": func(w *Row) { w.Wait = -1 }, "long wait": func(w *Row) { w.Wait = maxWait + 1 },
		"never for a family of 4": func(w *Row) {
			w.Code, w.Enhanced, w.Text, w.Result, w.Scope, w.Wait = "4xx", "", "no", Never, ScopeMessage, 0
		},
		"never for any 451": func(w *Row) {
			w.Code, w.Enhanced, w.Text, w.Result, w.Scope, w.Wait = "451", "", "", Never, ScopeMessage, 0
		},
		"never with a wait": func(w *Row) { w.Result, w.Scope = Never, ScopeMessage },
		"never before mail": func(w *Row) { w.Result, w.Scope, w.Wait, w.Stage = Never, ScopeMessage, 0, StageAuth },
	} {
		w := ok
		change(&w)
		if err := w.normalise(); !errors.Is(err, refusal.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	for _, w := range []Row{ok, {Code: "55X", Enhanced: "5.7.X", Result: Never, Scope: ScopeRecipient, Stage: StageRcpt}, {Code: "451", Text: "listed", Result: Never, Scope: ScopeMessage}, {Code: "4xx", Enhanced: "none", Result: Later, Scope: ScopeHost}, {Code: "5xx", Enhanced: "x.5.3", Result: Later, Scope: ScopeRecipient, Stage: StageMore}} {
		if err := w.normalise(); err != nil {
			t.Errorf("%s: %v", w, err)
		}
	}
}

func TestRowHidden(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		wide, narrow Row
		want         bool
	}{
		{Row{Code: "554"}, Row{Code: "554", Enhanced: "5.2.0", Text: "quota", Stage: StageDot}, true},
		{Row{Code: "55x", Enhanced: "5.x.0"}, Row{Code: "554", Enhanced: "5.2.0"}, true},
		{Row{Code: "5xx", Stage: StageRcpt, Text: "daily"}, Row{Code: "550", Stage: StageMore, Text: "daily quota"}, true},
		{Row{Code: "554"}, Row{Code: "55x"}, false},
		{Row{Code: "554", Enhanced: "5.2.0"}, Row{Code: "554"}, false},
		{Row{Code: "554", Enhanced: "5.2.x"}, Row{Code: "554", Enhanced: "none"}, false},
		{Row{Code: "554", Text: "daily quota"}, Row{Code: "554", Text: "daily"}, false},
		{Row{Code: "554", Stage: StageDot}, Row{Code: "554"}, false},
		{Row{Code: "554", Result: Never}, Row{Code: "554", Result: Later}, false}, // never is of mail only
	} {
		test.wide.ID, test.narrow.ID = 7, 8
		table := &Replies{rows: []Row{test.wide, test.narrow}}
		if by := table.HiddenBy(8); (by != nil) != test.want || by != nil && by.ID != 7 {
			t.Errorf("%s before %s: %v", test.wide, test.narrow, by)
		}
		if by := table.HiddenBy(7); by != nil {
			t.Errorf("the first row: %v", by)
		}
	}
}

// A row without a stage that says never does so of mail only.
func TestNeverBeforeMail(t *testing.T) {
	t.Parallel()
	table := &Replies{rows: []Row{{Code: "554", Result: Never, Scope: ScopeMessage}}}
	reply := smtp.Permanent(554, 5, 0, "no")
	for stage, want := range map[Stage]Verdict{StageConnect: {Result: Later, Scope: ScopeHost}, StageAuth: {Result: Later, Scope: ScopeAccount}} {
		if v := table.Classify(stage, reply); v != want {
			t.Errorf("%s: %+v", stage, v)
		}
	}
	if v := table.Classify(StageDot, reply); v.Result != Never {
		t.Errorf("at the dot: %+v", v)
	}
}

func TestPresets(t *testing.T) {
	t.Parallel()
	for _, name := range Presets() {
		p, err := presetNamed(name)
		if err != nil {
			t.Fatal(err)
		}
		a := Account{Name: "out", Preset: name, Username: "u", Password: "p"}
		if p.Host == "" {
			a.Host = "smtp.example.com"
		}
		if err := a.Fill(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := a.Validate(); err != nil || a.Port != 587 || a.TLS != TLSRequire {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	m365 := Account{Name: "out", Preset: "m365", TLS: TLSImplicit, MaxConnections: 1}
	if err := m365.Fill(); err != nil || m365.Port != 465 || m365.MaxConnections != 1 || m365.MaxRecipients != 100 || m365.Host != "smtp.office365.com" {
		t.Errorf("what is given is replaced: %+v, %v", m365, err)
	}
	ses := Account{Name: "out", Preset: "ses"}
	if err := ses.Fill(); !errors.Is(err, refusal.ErrInvalid) || !strings.Contains(err.Error(), "email-smtp.") {
		t.Errorf("ses without a host: %v", err)
	}
	if _, err := presetNamed("nope"); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("unknown preset: %v", err)
	}
	if len(Table("of a newer version").Rows()) != len(Table(Generic).Rows()) {
		t.Error("a preset that is not known is not the generic one")
	}
	for _, broken := range []string{"[generic]\nnope = 1", "[generic]\nreply = [{code = \"12\", scope = \"account\"}]", "[generic]\nreply = [{code = \"554\", scope = \"account\", wait = \"x\"}]", "x"} {
		if _, err := parsePresets([]byte(broken)); err == nil {
			t.Errorf("%q is taken", broken)
		}
	}
}
