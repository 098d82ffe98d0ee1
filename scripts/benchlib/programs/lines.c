/* lines BYTES: write lines of 100 bytes to stdout, as fast as the reader takes them; the very last one says END. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE 100
#define LINES 655

int main(int argc, char **argv)
{
    static char block[LINE * LINES];
    long left = argc > 1 ? atol(argv[1]) / LINE : 0;
    for (int i = 0; i < LINES; i++) {
        memset(block + i * LINE, 'a' + i % 26, LINE - 1);
        block[i * LINE + LINE - 1] = '\n';
    }
    while (left > 0) {
        long lines = left < LINES ? left : LINES, size, done = 0;
        left -= lines;
        size = lines * LINE;
        if (!left)
            memcpy(block + size - 4, "END", 3);
        while (done < size) {
            ssize_t written = write(1, block + done, (size_t)(size - done));
            if (written < 0)
                return 1;
            done += written;
        }
    }
    return 0;
}
