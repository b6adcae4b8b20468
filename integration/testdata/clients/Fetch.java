import java.io.IOException;
import java.net.*;
import java.net.http.*;
import java.nio.file.*;
import java.security.KeyStore;
import java.security.cert.*;
import javax.net.ssl.*;

// Fetches pages with both of Java's HTTP clients, and prints a line for each.
//
//     java Fetch.java CA-FILE HTTP-URL HTTPS-URL PORT...
class Fetch {
    public static void main(String[] args) throws Exception {
        KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null, null);
        try (var in = Files.newInputStream(Path.of(args[0]))) {
            trusted.setCertificateEntry("origin", CertificateFactory.getInstance("X.509").generateCertificate(in));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(trusted);
        SSLContext tls = SSLContext.getInstance("TLS");
        tls.init(null, trust.getTrustManagers(), null);
        HttpsURLConnection.setDefaultSSLSocketFactory(tls.getSocketFactory());

        for (int i = 3; i < args.length; i++) {
            // A proxy's address is looked up; that of the page is not.
            InetSocketAddress port = new InetSocketAddress("127.0.0.1", Integer.parseInt(args[i]));
            HttpClient client = HttpClient.newBuilder().proxy(ProxySelector.of(port)).sslContext(tls).build();
            for (String url : new String[] {args[1], args[2]}) {
                for (Proxy.Type type : new Proxy.Type[] {Proxy.Type.HTTP, Proxy.Type.SOCKS}) {
                    URLConnection c = new URL(url).openConnection(new Proxy(type, port));
                    print("HttpURLConnection " + type, new String(c.getInputStream().readAllBytes()));
                }
                // Twice: the second request has the first one's connection.
                for (int n = 0; n < 2; n++) {
                    print("HttpClient", client.send(HttpRequest.newBuilder(URI.create(url)).build(),
                        HttpResponse.BodyHandlers.ofString()).body());
                }
            }
        }
    }

    static void print(String client, String text) {
        System.out.print(client + ": " + text);
    }
}
