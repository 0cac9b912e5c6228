import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.charset.StandardCharsets;

/** Dial HOST PORT MILLISECONDS: Socket.connect, with a time limit unless it is 0, and a GET; prints the answer. */
public final class Dial {
    public static void main(String[] args) throws IOException {
        try (Socket socket = new Socket()) {
            InetAddress host = InetAddress.getByName(args[0]);
            socket.connect(new InetSocketAddress(host, Integer.parseInt(args[1])), Integer.parseInt(args[2]));
            socket.getOutputStream().write("GET /peer HTTP/1.0\r\n\r\n".getBytes(StandardCharsets.US_ASCII));
            socket.getInputStream().transferTo(System.out);
        }
    }
}
