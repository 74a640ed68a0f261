package handout

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
)

// Print prints them for people, nothing without ports. Errors: out's.
func (s *Settings) Print(out io.Writer) error {
	if len(s.Ports) == 0 {
		return nil
	}
	fmt.Fprintf(out, "\nfor the mail client:\n  server     %s\n", screen.Printable(s.Server))
	for _, p := range s.Ports {
		secured := "STARTTLS"
		if p.TLS == "implicit" {
			secured = "SSL/TLS"
		}
		fmt.Fprintf(out, "  port       %d with %s\n", p.Port, secured)
	}
	_, err := fmt.Fprintf(out, "  user name  %s\n", screen.Printable(s.UserName))
	return err
}

// Flags adds to cmd the flags that say which files to make.
func (p *Profiles) Flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.Apple, "mobileconfig", "", "write a profile for Apple's clients to `FILE`")
	f.StringVar(&p.Mozilla, "autoconfig", "", "write a configuration for Thunderbird to `FILE`")
	f.StringVar(&p.IMAP, "imap", "", "incoming server to put in the files, as `HOST[:PORT]`")
	f.BoolVar(&p.Force, "force", false, "overwrite existing files")
}

// ProfilesHelp says what these flags do.
const ProfilesHelp = `--mobileconfig writes a configuration profile for iPhone and Mac, --autoconfig the same in
Thunderbird's format. Neither contains a password; existing files are not overwritten
without --force. Both describe an account that also fetches mail: name its IMAP server
with --imap (TLS on port 993). Without --imap, Apple's file names this server instead,
and Thunderbird's has no incoming server.`

// Put puts the files that were made into their places, and says so. Errors: of writing them.
func (p *Profiles) Put(say io.Writer, made Pending) error {
	if err := made.Put(); err != nil {
		return err
	}
	for _, file := range made {
		fmt.Fprintf(say, "wrote %s\n", screen.Printable(file.Path))
	}
	if p.Apple != "" && p.IMAP == "" {
		fmt.Fprintln(say, "warning: Apple's profile must have an incoming server: it names this server, which has no mail to fetch; name yours with --imap")
	}
	if p.Mozilla != "" && p.IMAP == "" {
		fmt.Fprintln(say, "warning: Thunderbird's file has no incoming server, and a client may refuse it; name yours with --imap")
	}
	return nil
}
