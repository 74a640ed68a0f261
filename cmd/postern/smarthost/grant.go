package smarthost

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"postern/cmd/postern/secret"
	"postern/internal/refusal"
	"postern/relay/upstream/oauth"
)

// grantFlags say by what an upstream's account gets access tokens.
type grantFlags struct {
	grant       oauth.Grant
	kind        string
	secret      secret.Source
	certificate string
	keyFile     string
}

func (g *grantFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&g.kind, "oauth", "", "log in by access tokens, with this `GRANT`: client-credentials, service-account or refresh-token")
	f.StringVar(&g.grant.Authority, "authority", "", "`NAME` of the authority that issues the tokens: "+strings.Join(oauth.Known().Names(), ", ")+" (default: derived from --oauth and --tenant)")
	f.StringVar(&g.grant.Tenant, "tenant", "", "Microsoft: `ID` of the tenant, or one of its domains")
	f.StringVar(&g.grant.ClientID, "client-id", "", "`ID` of the application")
	g.secret.Flags(cmd, "client-secret")
	f.StringVar(&g.certificate, "client-certificate", "", "PEM `FILE` with the application's certificate and key, to log in with instead of a secret")
	f.StringVar(&g.keyFile, "key-file", "", "Google: JSON `FILE` of the service account")
	f.StringVar(&g.grant.Subject, "subject", "", "Google: `ADDRESS` of the mailbox that the service account impersonates (default: --username)")
	_ = cmd.RegisterFlagCompletionFunc("oauth", cobra.FixedCompletions([]string{string(oauth.ClientCredentials), string(oauth.ServiceAccount), string(oauth.RefreshToken)}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("authority", cobra.FixedCompletions(oauth.Known().Names(), cobra.ShellCompDirectiveNoFileComp))
	cmd.MarkFlagsMutuallyExclusive("client-secret-stdin", "client-secret-file", "client-certificate", "key-file")
	cmd.MarkFlagsMutuallyExclusive("client-secret-stdin", "password-stdin")
	cmd.MarkFlagsMutuallyExclusive("oauth", "password-stdin", "password-file")
}

// given reports that one of the flags was.
func (g *grantFlags) given() bool {
	return g.kind != "" || g.grant != (oauth.Grant{}) || g.secret.Given() || g.certificate != "" || g.keyFile != ""
}

// read returns the grant of the flags; its files follow the rule for those with secrets.
func (g *grantFlags) read(stdin io.Reader, warn func(error)) (grant oauth.Grant, err error) {
	if g.kind == "" {
		return grant, refusal.Invalid("--authority, --tenant, --client-id, --client-…, --key-file and --subject need --oauth")
	}
	grant = g.grant
	grant.Kind = oauth.Kind(g.kind)
	if g.secret.Given() {
		if grant.Secret, err = g.secret.Read(stdin, warn); err != nil {
			return grant, err
		}
	}
	for _, file := range []struct {
		flag, path string
		into       *string
	}{{"--client-certificate", g.certificate, &grant.Certificate}, {"--key-file", g.keyFile, &grant.Key}} {
		if file.path == "" {
			continue
		}
		if *file.into, err = secret.File(file.path, warn); err != nil {
			return grant, fmt.Errorf("%s: %w", file.flag, err)
		}
	}
	return grant, nil
}
