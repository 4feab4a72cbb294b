# ruff: noqa: RUF001 - signs as people write them
"""Answers beside references, by kind: one a line, `answer ~ reference`."""

RIGHT = {
    "spacing and brackets": r"""
        \left( 3, \frac{\pi}{2} \right) ~ (3,\frac{\pi}{2})
        \bigl(3,\tfrac{\pi}{2}\bigr) ~ \left( 3, \frac{\pi}{2} \right)
        ( 3 , \pi / 2 ) ~ \left( 3, \frac{\pi}{2} \right)
        {(6,31,-1)} ~ (6,31,-1)
        \displaystyle \dfrac{14}{3} ~ \frac{14}{3}
        $\frac{14}{3}$ ~ \frac{14}{3}
        \(\frac{14}{3}\) ~ \frac{14}{3}
        \[ \frac{14}{3} \] ~ \frac{14}{3}
        $$9$$ ~ 9
        \boxed{\frac{14}{3}} ~ \frac{14}{3}
        \boxed{9}. ~ 9
        16. ~ 16
        \frac{1}{2}. ~ \frac12
        \text{Evelyn}. ~ \text{Evelyn}
        \left\{0,1\right\} ~ \{0, 1\}
        \mathbf{42} ~ 42
        {7} ~ 7
        \,7\, ~ 7
        7\quad ~ 7
    """,
    "numbers": r"""
        +5 ~ 5
        5.0 ~ 5
        05 ~ 5
        58,500 ~ 58500
        58{,}500 ~ 58500
        58\,500 ~ 58,500
        1,\!600 ~ 1600
        1,600,\!000 ~ 1,\!600,\!000
        $1{,}600{,}000$ ~ 1600000
        .35 ~ 0.35
        0.350 ~ .35
        \frac{7}{20} ~ .35
        7/20 ~ 0.35
        -\frac{1}{2} ~ -0.5
        \frac{-1}{2} ~ -\frac12
        \frac{1}{-2} ~ -\frac12
        -0.50 ~ -\tfrac{1}{2}
        2^4 ~ 16
        \sqrt{256} ~ 16
        \frac{32}{2} ~ 16
        32/2 ~ 16
        1.5 \times 10^{3} ~ 1500
        1.5 × 10³ ~ 1500
        1.5e3 ~ 1500
        2^{-3} ~ \frac{1}{8}
        \frac{1}{2^{98}} ~ 2^{-98}
        \frac1{3^{40}} ~ 3^{-40}
        (\frac{1}{2})^{10} ~ \frac{1}{1024}
        0.\overline{3} ~ \frac{1}{3}
        0.1\overline{6} ~ \frac16
        0.\overline{1331} ~ \frac{1331}{9999}
        −7 ~ -7
        ½ ~ 0.5
        5 million ~ 5,000,000
        5 \text{ million} ~ 5000000
        3 dozen ~ 36
        \frac{3}{4} ~ \frac{6}{8}
        |{-5}| ~ |{-5}|
        8.0 ~ 8
        8 ~ 8.0
        2025 ~ 3^4 \cdot 5^2
        45^2 ~ 3^4 \cdot 5^2
        3628800 ~ 10!
        100! ~ 100!
        \dfrac{10}{13} ~ {10 \over 13}
        10 ~ \binom{5}{2}
        {5 \choose 2} ~ \binom{5}{2}
    """,
    "mixed numbers": r"""
        1 4/5 ~ \frac{9}{5}
        1 4/5 ~ 1.8
        1\frac45 ~ \frac95
        1 \frac{4}{5} ~ 9/5
        1\ \frac{4}{5} ~ 1\frac{4}{5}
        -1\frac{4}{5} ~ -\frac{9}{5}
        -2 1/2 ~ -2.5
        3½ ~ 3.5
        137 \frac{1}{2} ~ 137\frac12
        137.5 ~ 137 \frac{1}{2}
        \frac{275}{2} ~ 137 \frac{1}{2}
        33\frac13\% ~ \frac13
    """,
    "percent": r"""
        -50\% ~ -0.5
        50\% ~ \frac{1}{2}
        10% ~ 10\%
        10 \% ~ 10\%
        10 percent ~ 10\%
        10 \text{ percent} ~ 10\%
        0.1 ~ 10\%
        \frac{1}{10} ~ 10\%
        12.50\% ~ 12.5\%
        x = 10\% ~ 10\%
    """,
    "surds, powers, constants": r"""
        √51 ~ \sqrt{51}
        \sqrt{51} ~ √51
        11√2 ~ 11\sqrt2
        11\sqrt{2} ~ 11\sqrt2
        \sqrt{242} ~ 11\sqrt2
        \sqrt2\cdot 11 ~ 11\sqrt2
        11 * sqrt(2) ~ 11\sqrt2
        \frac{\sqrt{2}}{2} ~ \frac{1}{\sqrt2}
        1/\sqrt{2} ~ \frac{\sqrt2}{2}
        2^{1/2} ~ \sqrt2
        \frac{1+\sqrt5}{2} ~ \frac{\sqrt{5}+1}{2}
        \frac12+\frac{\sqrt5}{2} ~ \frac{1+\sqrt5}{2}
        \sqrt{3+2\sqrt2} ~ 1+\sqrt2
        3\sqrt[3]{2} ~ \sqrt[3]{54}
        2^{1/3} ~ \sqrt[3]{2}
        \pi/4 ~ \frac{\pi}{4}
        \frac14\pi ~ \frac{\pi}{4}
        0.25\pi ~ \frac{\pi}{4}
        π/4 ~ \frac{\pi}{4}
        pi/4 ~ \frac{\pi}{4}
        9π ~ 9\pi
        \pi \cdot 9 ~ 9\pi
        12 + 4\pi ~ 4\pi+12
        -\sqrt{3} ~ -3^{1/2}
        e^{2} ~ e^2
        e^{i\pi/2} ~ i
        \log 8 ~ 3\log 2
        \log_2 3 ~ \frac{\ln 3}{\ln 2}
        \cos 30^\circ ~ \frac{\sqrt{3}}{2}
        \sin\frac{\pi}{3} ~ \frac{\sqrt3}{2}
        \arctan 1 ~ \frac{\pi}{4}
        \frac{\sqrt{6}+\sqrt{2}}{4} ~ \cos 15^\circ
        10\sqrt{5} ~ \sqrt{500}
    """,
    "complex numbers": r"""
        1-12\mathrm{i} ~ 1-12i
        -12i+1 ~ 1-12i
        6 - 5 i ~ 6 - 5i
        6-5\cdot i ~ 6 - 5i
        \frac{1}{2} + \frac{\sqrt3}{2}i ~ \frac{1+i\sqrt{3}}{2}
        -i ~ \frac{1}{i}
        2i ~ \sqrt{-4}
    """,
    "expressions": r"""
        (x+1)^2 ~ x^2+2x+1
        x^2 + 2x + 1 ~ (x+1)(x+1)
        1+2x+x^2 ~ x^2+2x+1
        x² + 2x + 1 ~ x^2+2x+1
        x^{2}+2\cdot x+1 ~ x^2+2x+1
        x**2+2*x+1 ~ x^2+2x+1
        (x-5)(3x+2) ~ 3x^2-13x-10
        p-q ~ -q+p
        ba ~ ab
        2ab ~ 2ba
        y = 2x+3 ~ 2x+3
        2x+3 ~ y=2x+3
        f(x) = 2x+3 ~ 2x+3
        3+2x ~ f(x)=2x+3
        \frac{x+2}{7} ~ \frac{1}{7}x+\frac27
        \frac{3}{x^2-1} ~ \frac{3}{(x-1)(x+1)}
        (4x-8)/(x+2) ~ \frac{4x-8}{x+2}
        \frac{-x}{3} ~ -\frac{x}{3}
        x^{-2} ~ \frac{1}{x^2}
        36x\sqrt{10x} ~ 36\sqrt{10x^3}
        \sqrt{x} ~ x^{1/2}
        a(b+c) ~ ab+ac
        \frac{1}{2}h(a+b) ~ \frac{h(a+b)}{2}
        5r^5 ~ 5 r^{5}
        -2x^3y ~ -2yx^3
        \theta + 2 ~ 2+\theta
        x_1 + x_2 ~ x_2+x_1
        \sin^2 x ~ 1-\cos^2 x
        2\sin x\cos x ~ \sin 2x
        e^{x+1} ~ e \cdot e^x
        |x-1| ~ |1-x|
        \frac{n(n+1)}{2} ~ \binom{n+1}{2}
    """,
    "equations": r"""
        x=5 ~ 5
        5 ~ x=5
        x = 58,500 ~ 58500
        x = 58,500 ~ 58,500
        5 = x ~ x=5
        y=2x+3 ~ y = 3+2x
        2x-y+3=0 ~ y=2x+3
        4x+6y=12 ~ 2x+3y=6
        2x+3y-6=0 ~ 2x+3y=6
        y=-\frac23x+2 ~ 2x+3y=6
        (x-2)^2+(y+3)^2=16 ~ (y+3)^2 + (x-2)^2 = 4^2
        AB = 7 ~ 7
        \angle ABC = 30^\circ ~ 30^\circ
        \text{Area} = 24 ~ 24
        m+n = 24 ~ 24
        P(A) = \frac12 ~ 0.5
        f(2) = 7 ~ 7
        x = y = 3 ~ 3
        2\cdot 8 = 16 ~ 16
        8+8=16 ~ 16
        \sqrt{9^2+6^2} = 3\sqrt{13} ~ 3\sqrt{13}
        x = \frac{6}{2} = 3 ~ 3
        k=\frac{9}{4} ~ \frac94
    """,
    "tuples": r"""
        (1, 2) ~ (1,2)
        (0.5, -3) ~ (\frac12,-3)
        (x,y) = (1,2) ~ (1,2)
        (1,2) ~ (x,y)=(1,2)
        \langle 1,2\rangle ~ (1,2)
        (\sqrt{8},\frac{\pi}{4}) ~ (2\sqrt2, \pi/4)
        (3,\frac{\pi}{2}) ~ \left( 3, \frac{\pi}{2} \right)
    """,
    "intervals": r"""
        -2\le x\le 7 ~ x\in[-2,7]
        x\in[-2,7] ~ -2\le x\le 7
        [-2,7] ~ -2\le x\le 7
        [-2,7] ~ x \in [-2,7]
        x\in[-2,7] ~ [-2,7]
        -2 <= x <= 7 ~ [-2,7]
        -2 ≤ x ≤ 7 ~ [-2,7]
        7 \ge x \ge -2 ~ [-2,7]
        x ∈ [−2, 7] ~ [-2,7]
        x \ge 2 ~ [2,\infty)
        2 \leq x ~ [2,\infty)
        [2, ∞) ~ x\ge 2
        [2,+\infty) ~ [2,\infty)
        x>2 ~ (2,\infty)
        x<-3 ~ (-\infty,-3)
        \left(\frac{3}{5}, \frac83\right] ~ (\frac{3}{5},\frac{8}{3}]
        (0.6,\frac83] ~ (\frac{3}{5},\frac{8}{3}]
        \frac35 < x \le \frac83 ~ (\frac{3}{5},\frac{8}{3}]
        2 < x < 4 ~ (2,4)
        (0,9)\cup(9,36) ~ (9,36) \cup (0,9)
        (0,9) ∪ (9,36) ~ (0,9) \cup (9,36)
        (0,9) U (9,36) ~ (0,9) \cup (9,36)
        x<1 \text{ or } x>3 ~ (-\infty,1)\cup(3,\infty)
        x<1 or x>3 ~ (-\infty,1)\cup(3,\infty)
        (-\infty,1)\cup(3,\infty) ~ x<1 \text{ or } x>3
        x \in (-\infty,1)\cup(3,\infty) ~ (-\infty,1)\cup(3,\infty)
        x>1 \text{ and } x<3 ~ (1,3)
        x\neq 3 ~ (-\infty,3)\cup(3,\infty)
        \mathbb{R} \setminus \{3\} ~ (-\infty,3)\cup(3,\infty)
        (-\infty,\infty) ~ \mathbb{R}
    """,
    "sets and lists": r"""
        \{3,1\} ~ \{1,3\}
        1, 0 ~ \{0,1\}
        \{1,-2\} ~ 1,-2
        -2,1 ~ 1,-2
        1 and -2 ~ 1,-2
        1 \text{ and } -2 ~ 1,-2
        x=1 \text{ or } x=-2 ~ 1,-2
        x=1, x=-2 ~ 1,-2
        x = 1, -2 ~ 1,-2
        \pm\sqrt3 ~ \sqrt3, -\sqrt3
        -\sqrt{3}, \sqrt{3} ~ \pm\sqrt3
        x=\pm\sqrt{3} ~ \pm \sqrt3
        ±5 ~ 5,-5
        1\pm\sqrt{2} ~ 1+\sqrt2, 1-\sqrt2
        1-\sqrt2,1+\sqrt2 ~ 1 \pm \sqrt{2}
        \frac{1\pm\sqrt5}{2} ~ \frac{1 - \sqrt{5}}{2}, \frac{1+\sqrt5}{2}
        0.5, 2 ~ \frac12, 2
        \emptyset ~ \{\}
        100,200,300 ~ 100, 200, 300
        1, 3, and 5 ~ 1,3,5
        \{-1\}\cup[0,1] ~ [0,1]\cup\{-1\}
        x \in \{1,2\} ~ \{1,2\}
        i, -i ~ \pm i
    """,
    "sets given by a condition": r"""
        \{x \mid x > 2\} ~ (2,\infty)
        \{x : x > 2\} ~ x > 2
        \left\{x \,\middle|\, x \ge 2\right\} ~ [2,\infty)
        \{x \in \mathbb{R} \mid x > 2\} ~ (2,\infty)
        \{x | -2 \le x \le 7\} ~ [-2,7]
        \{k : k = 3\} ~ \{3\}
        \{2|x|, 3\} ~ \{3, 2|x|\}
        \{a|b|, 2\} ~ \{2, a|b|\}
        \{x|x|, 3\} ~ \{3, x|x|\}
        \{|a||b|, 1\} ~ \{1, |a||b|\}
        \mathbb{R} ~ (-\infty,\infty)
    """,
    "names of lines and angles": r"""
        \overline{AB} ~ \overline{AB}
        \vec{v} ~ \vec{v}
        \angle ABC ~ \angle ABC
    """,
    "matrices": r"""
        \begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix} ~ \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
        \begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
        \begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix} ~ \begin{pmatrix} -1/3 \\ 2/3 \\ \end{pmatrix}
        \begin{pmatrix} -0.5 \\ 2 \end{pmatrix} ~ \begin{pmatrix} -\frac12 \\ 2 \end{pmatrix}
        \left(\begin{array}{cc}1&2\\3&4\end{array}\right) ~ \begin{pmatrix}1&2\\3&4\end{pmatrix}
    """,
    "units": r"""
        9 dollars ~ 9
        9 apples ~ 9
        9\text{ apples} ~ 9
        9 ~ 9 \text{ apples}
        9 ~ 9 (apples)
        9 apples ~ 9 (apples)
        9 (apples) ~ 9 (apples)
        9 apple ~ 9 (apples)
        9 (red apples) ~ 9
        €9 ~ 9
        \$18.90 ~ 18.9
        18.90 ~ \$18.90
        $18.90 ~ \$18.90
        18.90 dollars ~ \$18.90
        18.90 \text{ dollars} ~ \$18.90
        \$1,200 ~ \$1200
        -\$5 ~ -5
        5 cm ~ 5 \text{ cm}
        5\,\text{cm} ~ 5 \text{ cm}
        5\,\mathrm{cm} ~ 5\text{ cm}
        5 centimeters ~ 5\text{ cm}
        5 meters ~ 5 m
        5 m ~ 5 meters
        12 grams ~ 12 g
        3 seconds ~ 3 s
        x=2.5 hours ~ \frac{5}{2} h
        5 square meters ~ 5 m^2
        5 \text{ cm}^2 ~ 5 \text{ cm}^{2}
        5 cm^2 ~ 5 \text{ cm}^2
        5 cm² ~ 5 \text{ cm}^2
        5 square centimeters ~ 5 \text{ cm}^2
        5 \text{ sq cm} ~ 5 \text{ cm}^2
        864 ~ 864 \mbox{ inches}^2
        864 \text{ in}^2 ~ 864 \mbox{ inches}^2
        12 miles per hour ~ 12
        12 mph ~ 12 \text{ miles/hour}
        12 km/h ~ 12 \text{ km/h}
        36\pi \text{ cm}^3 ~ 36\pi
        45 minutes ~ 45
        3 hours ~ 3 \text{ hours}
        2 hrs ~ 2 \text{ hours}
        25 cents ~ 25
        12 people ~ 12
        8.0 ~ 8 pens
        7 ~ 7 (m)
        7 m ~ 7 (m)
        5 m^2 ~ 5 \text{ m}^2
        5 m/s ~ 5 \text{ m/s}
        4.5 kg ~ 4.5 (kg)
        2 ~ 2 (hours)
        6 inches ~ 6 \text{ in.}
        38 4/7 ~ \frac{270}7\text{ degrees}
        5.4 ~ 5.4 \text{ cents}
        60 ft/s ~ 60\text{ feet per second}
        50 miles per hour ~ 50\text{ mph}
    """,
    "degrees": r"""
        90° ~ 90^\circ
        90\degree ~ 90^\circ
        90^{\circ} ~ 90^\circ
        90 degrees ~ 90^\circ
        90\text{ degrees} ~ 90^\circ
        90 ~ 90^\circ
        90° ~ 90
        90^\circ ~ 90
        x = 90^\circ ~ 90
        22.5^\circ ~ \frac{45}{2}^\circ
    """,
    "bases": r"""
        52_8 ~ 52_8
        52_{8} ~ 52_8
        (52)_8 ~ 52_8
        052_8 ~ 52_8
        52 base 8 ~ 52_8
        52_{\text{eight}} ~ 52_8
        52\text{ (base 8)} ~ 52_8
        x = 52_8 ~ 52_8
        1A7_{16} ~ 1a7_{16}
        52_{10} ~ 52
    """,
    "abbreviations": r"""
        5 sq. ft. ~ 5\text{ square feet}
        5 ft.^2 ~ 5\text{ ft}^2
        5\text{ cu. in.} ~ 5\text{ in}^3
        12 in. ~ 12\text{ inches}
        10 m.p.h. ~ 10 mph
        10 mi./hr. ~ 10 mph
        6 oz. of gold ~ 6\text{ oz of gold}
    """,
    "semicolons": r"""
        1; 3, 2 ~ 1;2,3
        2, 3; 1 ~ 2,3;1
        1;2;3 ~ 3,2,1
        1; 2 and 3 ~ 1,2,3
        (3,4);(1,2) ~ (1,2),(3,4)
        x=3,y=4; x=1,y=2 ~ x=1,y=2; x=3,y=4
        (1,2;3) ~ (1,2;3)
    """,
    "times and ratios": r"""
        3:30 pm ~ 3:30 p.m.
        3:30 PM ~ 3:30 \text{ p.m.}
        3:30\text{ p.m.} ~ 3:30 pm
        3:30pm ~ 3:30 p.m.
        5 p.m. ~ 5:00 pm
        5 ~ 5 p.m.
        5:30 ~ 5:30 p.m.
        17:30 ~ 5:30 p.m.
        5:30 p.m. ~ 17:30
        t = 5\text{ p. m.} ~ 5 pm
        12 noon ~ 12 p.m.
        12:00 a.m. ~ \text{midnight}
        0:30 ~ 12:30 a.m.
        5 o'clock ~ 5 a.m.
        6 p.m., 5 a.m. ~ 5 a.m., 6 p.m.
        154 \text{ pm} ~ 154 pm
        5.5 pm ~ 5.5\text{ pm}
        3 : 4 ~ 3:4
        3{:}4 ~ 3:4
        2:3:5 ~ 2 : 3 : 5
        \sqrt{2}:1 ~ \sqrt2 : 1
    """,
    "words": r"""
        YES ~ yes
        Yes. ~ \text{yes}
        \text{Yes} ~ yes
        \textbf{even} ~ \text{even}
        even ~ \text{even}
        \mathrm{Evelyn} ~ \text{Evelyn}
        evelyn ~ Evelyn
        (C) ~ \text{(C)}
        C ~ \text{(C)}
        \text{C} ~ \text{(C)}
        \textbf{(C)} ~ \text{(C)}
        \text{(C)} ~ C
        \mathrm{(C)} ~ \text{(C)}
        $\text{(C)}$ ~ \text{(C)}
        \text{ellipse} ~ \text{Ellipse}
        July 4 ~ \text{July 4}
        Monday ~ \text{Monday}
        neither ~ \text{neither}
    """,
}

WRONG = {
    "arithmetic left to the reader": r"""
        10\,5 ~ 15
        10\quad 5 ~ 15
        7\,8\,1 ~ 16
        5\,+\,3 ~ 8
        5--3 ~ 8
        5+3 ~ 8 \text{ apples}
        40+50 ~ 90^\circ
        7 = 6 ~ 6
        8+8 ~ 16
        2\cdot 8 ~ 16
        2(8) ~ 16
        (2)(8) ~ 16
        32 \div 2 ~ 16
        17-1 ~ 16
        \frac{1+31}{2} ~ 16
        \frac{1}{2}+\frac{1}{4} ~ \frac34
        3 + \frac12 ~ 3.5
        5! ~ 120
        \binom{5}{2} ~ 10
        |-5| ~ 5
        \lfloor 5.5 \rfloor ~ 5
        3\sqrt{4} ~ 6
        \sqrt{9^2+6^2} ~ 3\sqrt{13}
        2\cdot 3\sqrt{2} ~ 6\sqrt2
        3+4\pi+1 ~ 4+4\pi
        (1+1,3) ~ (2,3)
        \{1+1,3\} ~ \{2,3\}
        [1+1,7] ~ [2,7]
        16 = 8+8 ~ 16
        x = 8+8 ~ 16
        x = 9 = 16 ~ 16
        7 = 16 ~ 16
        16\cdot 1 ~ 16
        \frac{16x}{x} ~ 16
        16 = 2 \cdot 8 ~ 16
        \log_2 8 ~ 3
        2^3\cdot 2 ~ 16
        \$5+\$3 ~ \$8
        1/2/2 ~ \frac14
        2x=10 ~ x=5
        2x = 10 ~ 5
        10\;5 ~ 15
        4 4 ~ 8
        4 4 ~ 16
        1\,6 ~ 7
        1 6 ~ 16
        1 2 3 ~ 6
    """,
    "rounding": r"""
        0.333333\, ~ 1/3
        x=0.333333 ~ \frac13
        33.3333\% ~ \frac13
        0.3333333333333333333333333 ~ \frac13
        3.141593 ~ \pi
        3.14 ~ \pi
        \frac{22}{7} ~ \pi
        1.414214 ~ \sqrt{2}
        1.41421356237309504880168872420969807856967 ~ \sqrt2
        28.27 ~ 9\pi
        \approx 9 ~ 9
        0.67 ~ \frac23
        1.3 ~ 1.36
        1.4 ~ 1.36
        1.361 ~ 1.36
        8.04 ~ 8.0
        17 ~ 16.5
        0.33 ~ 0.\overline{3}
        2.7182818 ~ e
        15.9999999 ~ 16
        0.7071 ~ \frac{\sqrt2}{2}
    """,
    "tiny and huge numbers": r"""
        \frac{1}{2^{98}} ~ \frac{1}{2^{99}}
        2^{-98} ~ 2^{-99}
        3^{-40} ~ 3^{-41}
        99! ~ 100!
        2^{99} ~ 2^{98}
        2^{2005}+1 ~ 2^{2005}
        \frac{1}{100!} ~ \frac{1}{99!}
        10^{-30} ~ 10^{-31}
        0 ~ \frac{1}{2^{99}}
        9007199254740993 ~ 9007199254740992
        \sqrt{10^{40}+1} ~ 10^{20}
        \pi + 10^{-40} ~ \pi
    """,
    "other values": r"""
        17 ~ 16
        -16 ~ 16
        61 ~ 16
        16 ~ -16
        \frac{4}{3} ~ \frac{3}{4}
        -\frac34 ~ \frac34
        1\frac34 ~ 1\frac45
        -1 4/5 ~ 1 4/5
        14/5 ~ 1 4/5
        5,850 ~ 58,500
        58.5 ~ 58,500
        58 ~ 58,500
        x=58 ~ 58,500
        12\sqrt2 ~ 11\sqrt2
        11\sqrt3 ~ 11\sqrt2
        \sqrt{11}2 ~ 11\sqrt2
        2\sqrt{11} ~ 11\sqrt2
        \sqrt[3]{2} ~ \sqrt{2}
        6+5i ~ 6-5i
        5-6i ~ 6-5i
        6-5j ~ 6-5i
        6-5 ~ 6-5i
        9\pi ~ 9
        9 ~ 9\pi
        \pi^9 ~ 9\pi
        \frac{\pi}{3} ~ \frac{\pi}{4}
        16x ~ 16
        16% 17 ~ 16
        1{6} ~ 7
        \phantom{1}6 ~ 16
        1\phantom{6} ~ 16
        \frac{}{16} ~ 16
        16\\17 ~ 16
        16, 17 ~ 16
        16 or 17 ~ 16
        16 \text{ or } 17 ~ 16
        16;17 ~ 16
        \pm 16 ~ 16
        \{16\} ~ 16
        x>16 ~ 16
        x \ge 16 ~ 16
        16!  ~ 16
        16' ~ 16
        16_8 ~ 16
        16:1 ~ 16
    """,
    "expressions": r"""
        x^3+2x+1 ~ x^2+2x+1
        x^2-2x+1 ~ x^2+2x+1
        x^2+2x+2 ~ x^2+2x+1
        y^2+2y+1 ~ x^2+2x+1
        x^2+2x+1=0 ~ x^2+2x+1
        (x-1)^2 ~ (x+1)^2
        2x+3 ~ 3x+2
        2x ~ x^2
        x^{12} ~ x^{21}
        x^{2}^{3} ~ x^6
        x_{1} ~ x_{2}
        \frac{x+1}{x-1} ~ \frac{x-1}{x+1}
        |x| ~ x
        \sin x ~ \cos x
        \sin^2 x ~ \sin x^2
        e^{x} ~ e^{-x}
        \log x ~ \ln x
        a-b ~ b-a
        A ~ a
        x+0.0000000001 ~ x
        \sqrt{x^2+1} ~ x+1
    """,
    "equations": r"""
        y=5 ~ x=5
        x=6 ~ x=5
        y=2x-3 ~ y=2x+3
        y=3x+2 ~ y=2x+3
        x=2y+3 ~ y=2x+3
        2x+3y=7 ~ 2x+3y=6
        2x+3y ~ 2x+3y=6
        2x+3y>6 ~ 2x+3y=6
        y>2x+3 ~ y=2x+3
        y\le 2x+3 ~ y \ge 2x+3
        x=-5 ~ 5
    """,
    "types": r"""
        2,4 ~ (2,4)
        (1,2),(4,3) ~ (1,2),(3,4)
        [1,2 ~ [1,2]
        (1,2]] ~ (1,2]
        \{2,4\} ~ (2,4)
        [2,4] ~ (2,4)
        [2,4) ~ (2,4)
        (2,4] ~ [2,4)
        (2,4) ~ [2,4]
        \{2,\infty\} ~ (2,\infty)
        [2,\infty) ~ (2,\infty)
        2,\infty ~ (2,\infty)
        \pm\sqrt3 ~ (-\sqrt3,\sqrt3)
        -\sqrt3,\sqrt3 ~ (-\sqrt3,\sqrt3)
        (-\sqrt3,\sqrt3) ~ \pm\sqrt3
        \sqrt3 ~ \pm\sqrt3
        -\sqrt3 ~ \pm\sqrt3
        \pm\sqrt3 ~ \sqrt3
        (1,-2) ~ 1,-2
        [1,-2] ~ 1,-2
        (3,1) ~ \{1,3\}
        (1,3) ~ \{1,3\}
        [1,3] ~ \{1,3\}
        (2,1) ~ (1,2)
        (1,2,3) ~ (1,2)
        (1) ~ (1,2)
        1 ~ 1,2
        1,2,3 ~ 1,2
        1,1,2 ~ 1,2
        1,-3 ~ 1,-2
        \{1,2\} ~ \{1,2,3\}
        \{1,3\} ~ \{1,2\}
        -2<x\le 7 ~ [-2,7]
        -2\le x\le 8 ~ [-2,7]
        x\le 7 ~ [-2,7]
        x>2 ~ [2,\infty)
        x<2 ~ (2,\infty)
        x\ge 2 ~ (-\infty,2]
        (0,9) ~ (0,9)\cup(9,36)
        (0,36) ~ (0,9)\cup(9,36)
        (0,9]\cup(9,36) ~ (0,9)\cup(9,36)
        (0,9)\cap(9,36) ~ (0,9)\cup(9,36)
        x<1 \text{ and } x>3 ~ (-\infty,1)\cup(3,\infty)
        \begin{pmatrix}1&3\\2&4\end{pmatrix} ~ \begin{pmatrix}1&2\\3&4\end{pmatrix}
        \begin{pmatrix}1&2\\3&5\end{pmatrix} ~ \begin{pmatrix}1&2\\3&4\end{pmatrix}
        \begin{pmatrix}1&2\end{pmatrix} ~ \begin{pmatrix}1\\2\end{pmatrix}
        \begin{vmatrix}1&2\\3&4\end{vmatrix} ~ \begin{pmatrix}1&2\\3&4\end{pmatrix}
        1,2,3,4 ~ \begin{pmatrix}1&2\\3&4\end{pmatrix}
        \emptyset ~ 0
        0 ~ \emptyset
        \{0\} ~ \emptyset
    """,
    "sets given by a condition": r"""
        \{x \mid x \ge 2\} ~ (2,\infty)
        \{x \mid y > 2\} ~ (2,\infty)
        \{x \in \mathbb{Z} \mid x > 2\} ~ (2,\infty)
        \{2k : k > 0\} ~ k > 0
        \{k : k = 3\} ~ 3
        \mathbb{Z} ~ (-\infty,\infty)
    """,
    "names of lines and angles": r"""
        \overline{AC} ~ \overline{AB}
        AB ~ \overline{AB}
        \overline{1} ~ 1
        \vec{w} ~ \vec{v}
        \angle ABC ~ \triangle ABC
    """,
    "brackets": r"""
        (3] ~ 3
        [2,3,4] ~ (2,3,4)
        \begin{pmatrix} 1 & 2 \\ 3 \end{pmatrix} ~ \begin{pmatrix} 1 & 2 \\ 3 & 0 \end{pmatrix}
        \begin{pmatrix} 1 & 2 ~ \begin{pmatrix} 1 & 2 \end{pmatrix}
    """,
    "bases": r"""
        52_9 ~ 52_8
        52 ~ 52_8
        42 ~ 52_8
        53_8 ~ 52_8
        25_8 ~ 52_8
        52_{10} ~ 52_8
        52_8 ~ 52
        52_8 ~ 42
        58_8 ~ 58_9
        102_3 ~ 102_4
        101_2 ~ 5
        0x2A ~ 42
    """,
    "semicolons": r"""
        2,3;1 ~ 1;2,3
        1,2;3 ~ 1;2,3
        1,2,3 ~ 1;2,3
        1;2,3 ~ 1,2,3
        1;2 ~ 1;2,3
        x=1,y=4; x=3,y=2 ~ x=1,y=2; x=3,y=4
        (1,2;3) ~ (1;2,3)
        \{2,3;1\} ~ \{1;2,3\}
    """,
    "times, ratios and words": r"""
        6:25 ~ 12:50
        12:05 ~ 12:50
        50:12 ~ 12:50
        12.50 ~ 12:50
        12/50 ~ 12:50
        3:30 a.m. ~ 3:30 p.m.
        3:03 pm ~ 3:30 p.m.
        5 a.m. ~ 5 p.m.
        6 ~ 5 p.m.
        17:30 ~ 5:30 a.m.
        5:30 ~ 5 p.m.
        12 a.m. ~ 12 noon
        13 a.m. ~ 1 a.m.
        5 dollars ~ 5 p.m.
        5 p.m. ~ 5 meters
        5 ~ 5 m
        6 meters ~ 5 m
        5 cm ~ 5 m
        5 meters ~ 5 g
        5 m ~ 5 grams
        5 m ~ 5 x
        5 meters ~ 5 x
        5 meters ~ 5m+1
        5 meters ~ m
        5 meters ~ x m
        5 apples ~ 5 m
        6 o'clock ~ 5 p.m.
        4:3 ~ 3:4
        6:8 ~ 3:4
        on ~ no
        stew ~ west
        tone ~ note
        eveN dd ~ even
        eve ~ even
        odd ~ even
        not even ~ even
        yes or no ~ yes
        yesno ~ yes
        seY ~ yes
        Evelyns ~ Evelyn
        Eve ~ \text{Evelyn}
        \text{(B)} ~ \text{(C)}
        \text{(C) or (B)} ~ \text{(C)}
        B, C ~ \text{(C)}
        -C ~ \text{(C)}
        \text{BAC} ~ \text{ABC}
        apples ~ 0
        \text{zero apples} ~ 0
        0\text{ or } 5 ~ 0
        x ~ 0
        \text{sixteen} ~ 16
        The answer is 16 ~ 16
        \text{July 5} ~ \text{July 4}
        \text{July} ~ \text{July 4}
    """,
    "units": r"""
        5\text{ million} ~ 5
        5 million ~ 5
        5 thousand ~ 5
        5 dozen ~ 5
        5 hundredths ~ 5
        5 percent ~ 5
        5\% ~ 5
        5 \text{ percent} ~ 5
        5 ~ 5\%
        50\% ~ 5\%
        0.5\% ~ 0.5
        5 \text{ or more} ~ 5
        5 or fewer ~ 5
        more than 5 ~ 5
        \text{at least } 5 ~ 5
        5 at least ~ 5
        about 5 ~ 5
        5 \text{ approximately} ~ 5
        not 5 ~ 5
        5 is wrong ~ 5
        5 \text{ squared} ~ 5
        5 halves ~ 5
        30\text{ radians} ~ 30^\circ
        30' ~ 30^\circ
        30 cm ~ 30^\circ
        \frac{\pi}{6} ~ 30^\circ
        60^\circ ~ 30^\circ
        30\% ~ 30^\circ
        5 m ~ 5 \text{ cm}
        5m ~ 5
        5 g ~ 5 \text{ m}
        7 km ~ 7 (m)
        7 (x) ~ 7
        1.50 dollars per ounce ~ \$1.50 \text{ per pound}
        5\text{ m} ~ 5\text{ cm}
        5 \text{ cm} ~ 5 \text{ cm}^2
        5 \text{ cm}^3 ~ 5 \text{ cm}^2
        6 \text{ cm} ~ 5 \text{ cm}
        5 hours ~ 5 \text{ minutes}
        9 oranges ~ 9 (apples)
        8 apples ~ 9 (apples)
        apples ~ 9 (apples)
        €18.90 ~ \$18.90
        \$18.09 ~ \$18.90
        18.90 euros ~ \$18.90
        18.90 cents ~ \$18.90
        9x ~ 9
        9xy ~ 9
        9 + apples ~ 9
        12 miles ~ 12 \text{ miles per hour}
        9 apples and 3 pears ~ 9
        9 apples 3 ~ 9
    """,
}


def pairs(kinds: dict[str, str]) -> list[tuple[str, str]]:
    """(answer, reference) of each line."""
    lines = [line for block in kinds.values() for line in block.strip().splitlines()]
    return [tuple(side.strip() for side in line.split(" ~ ")) for line in lines]
