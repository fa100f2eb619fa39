"""How often names are borne in the United States, coarsely: what the made-up humans of the identity evaluation are called.

After https://www.census.gov/topics/population/genealogy/data/2010_surnames.html (per 100,000 people) and the given names of
https://www.ssa.gov/oact/babynames/. Names alone; nobody here is anybody.
"""

from __future__ import annotations

_FAMILIES = """
Smith 828 Johnson 655 Williams 551 Brown 487 Jones 483 Miller 394 Davis 378 Wilson 272 Anderson 266 Thomas 256 Taylor 255 Moore 246
Jackson 240 Martin 238 Thompson 225 White 224 Harris 212 Clark 191 Lewis 180 Robinson 180 Walker 177 Young 164 Allen 164 King 158
Wright 156 Scott 149 Hill 147 Green 146 Adams 145 Nelson 144 Baker 142 Hall 138 Campbell 131 Mitchell 130 Carter 128 Roberts 128
Phillips 122 Evans 121 Turner 118 Parker 114 Edwards 113 Collins 112 Stewart 110 Morris 108 Murphy 105 Cook 104 Rogers 103 Morgan 97
Peterson 94 Cooper 95 Reed 93 Bailey 92 Bell 90 Kelly 90 Howard 89 Ward 88 Cox 88 Richardson 87 Wood 86 Watson 85 Brooks 84 Bennett 83
Gray 82 James 82 Hughes 79 Price 78 Myers 78 Long 76 Foster 75 Sanders 75 Ross 74 Powell 71 Sullivan 70 Russell 70 Perry 69 Butler 68
Barnes 67 Fisher 67 Henderson 66 Coleman 66 Simmons 65 Patterson 64 Jordan 63 Reynolds 62 Hamilton 61 Graham 60 Kim 89 Wallace 58
O'Brien 47 O'Connor 34 McDonald 56 Schmidt 50 Schultz 41 Kowalski 7 Novak 8 Haddad 4 Okafor 2 Ivanova 1 Petrov 1 Müller 3 Jensen 27
Hansen 37 Olson 54 Larson 41 Meyer 51 Weber 32 Wagner 47 Hoffman 45 Stein 14 Cohen 25 Levy 13 Patel 77 Singh 24 Khan 19 Ali 24 Ahmed 14
"""
_HISPANIC = """
Garcia 395 Rodriguez 371 Martinez 360 Hernandez 354 Lopez 297 Gonzalez 285 Perez 231 Sanchez 208 Ramirez 189 Torres 148 Flores 147
Rivera 133 Gomez 124 Diaz 118 Cruz 113 Reyes 111 Morales 107 Ortiz 103 Gutierrez 95 Ramos 93 Ruiz 91 Chavez 81 Mendoza 77 Castillo 75
Alvarez 73 Jimenez 72 Vasquez 69 Moreno 67 Herrera 67 Medina 66 Aguilar 63 Vargas 62 Guzman 60 Fernandez 59 Munoz 58 Salazar 56
Soto 55 Delgado 53 Pena 52 Rios 51 Santiago 47 Vega 47 Contreras 47 Nunez 43 Guerrero 43 Estrada 42 Ortega 42 Maldonado 40
"de la Cruz" 20 "de León" 18
"""
_ASIAN = "Nguyen 149 Tran 64 Le 40 Pham 39 Lee 80 Chen 66 Wong 42 Wang 45 Li 41 Yang 50 Liu 33 Huynh 23 Vang 15 Xiong 11 Lin 25 Wu 27 Park 20 Choi 18"
_WOMEN = """
Mary 260 Patricia 107 Jennifer 100 Linda 103 Elizabeth 94 Barbara 98 Susan 79 Jessica 70 Sarah 66 Karen 67 Nancy 67 Lisa 70 Margaret 77
Betty 67 Sandra 63 Ashley 55 Kimberly 60 Emily 55 Donna 58 Michelle 52 Carol 57 Amanda 50 Dorothy 73 Melissa 46 Deborah 49 Stephanie 41
Rebecca 43 Sharon 52 Laura 51 Cynthia 47 Kathleen 42 Amy 45 Angela 47 Shirley 48 Anna 44 Brenda 46 Pamela 42 Emma 35 Nicole 28
Helen 66 Samantha 33 Katherine 31 Christine 38 Debra 41 Rachel 24 Carolyn 38 Janet 38 Catherine 37 Maria 83 Heather 34 Diane 36 Ruth 56
Julie 35 Olivia 30 Joyce 36 Virginia 43 Victoria 18 Kelly 28 Lauren 24 Christina 28 Joan 31 Evelyn 32 Judith 31 Megan 20 Andrea 24
Cheryl 31 Hannah 21 Jacqueline 23 Martha 41 Gloria 34 Teresa 34 Ann 36 Sara 23 Madison 24 Frances 43 Kathryn 24 Janice 29 Jean 32
Abigail 22 Alice 36 Julia 23 Judy 28 Sophia 23 Grace 18 Denise 26 Amber 21 Doris 33 Marilyn 25 Danielle 20 Beverly 27 Isabella 20
Theresa 25 Diana 20 Natalie 15 Brittany 22 Charlotte 14 Marie 38 Kayla 16 Alexis 15 Lori 25 Anne 23 Jane 24 Jo 5 Zoe 6 Ella 10
"""
_MEN = """
James 332 John 327 Robert 314 Michael 265 William 245 David 236 Richard 170 Joseph 140 Thomas 138 Charles 152 Christopher 104 Daniel 97
Matthew 70 Anthony 72 Mark 94 Donald 93 Steven 78 Paul 95 Andrew 54 Joshua 44 Kenneth 83 Kevin 67 Brian 74 George 93 Edward 78
Ronald 73 Timothy 64 Jason 66 Jeffrey 59 Ryan 38 Jacob 30 Gary 65 Nicholas 32 Eric 54 Jonathan 31 Stephen 54 Larry 60 Justin 32
Scott 55 Brandon 26 Benjamin 27 Samuel 31 Gregory 44 Frank 58 Alexander 22 Raymond 49 Patrick 39 Jack 32 Dennis 42 Jerry 43 Tyler 20
Aaron 24 Jose 61 Adam 26 Henry 37 Nathan 19 Douglas 37 Zachary 16 Peter 38 Kyle 16 Walter 40 Ethan 12 Jeremy 19 Harold 37 Keith 31
Christian 16 Roger 32 Noah 10 Gerald 31 Carl 35 Terry 31 Sean 20 Austin 12 Arthur 34 Lawrence 28 Jesse 21 Dylan 10 Bryan 19 Joe 32
Jordan 10 Billy 25 Bruce 26 Albert 31 Willie 30 Gabriel 12 Logan 10 Alan 20 Juan 32 Wayne 25 Roy 27 Ralph 28 Randy 23 Eugene 23
Vincent 17 Russell 22 Elijah 10 Louis 24 Bobby 22 Philip 20 Johnny 20 Jayden 8 Jaylen 5 Liam 10 Mason 9 Lucas 9 Omar 5 Ian 8
"""
_HISPANIC_WOMEN = "María 300 Ana 90 Rosa 80 Carmen 70 Guadalupe 60 Juana 40 Isabel 40 Elena 40 Luisa 35 Leticia 30 Yolanda 30 Alicia 30 Sofía 30 Gabriela 25 Veronica 25 Silvia 25 Martha 25 Teresa 25 Esperanza 15 Lucía 15"
_HISPANIC_MEN = "José 200 Juan 150 Luis 130 Carlos 110 Jesús 90 Miguel 80 Jorge 70 Pedro 60 Francisco 60 Manuel 55 Antonio 55 Alejandro 50 Ricardo 40 Fernando 40 Roberto 40 Ángel 35 Rafael 35 Mario 30 Javier 30 Héctor 30"
_ASIAN_WOMEN = "Linh 50 Mai 45 Lan 45 Thi 40 Mei 40 Anh 40 Hoa 35 Jing 30 Min 30 Yan 30 Hue 25 Xin 20 Grace 30 Amy 30 Jenny 25"
_ASIAN_MEN = "Minh 50 Hung 45 Tuan 40 Wei 40 Anh 35 Van 35 Jun 30 Hao 30 Duc 30 Kevin 30 Andy 25 Tou 20 Jin 25 David 30 Long 25"

Weighted = tuple[list[str], list[float]]


def _read(text: str) -> Weighted:
    words = iter(text.split())
    names, weights = [], []
    for word in words:
        if word.startswith('"'):
            while not word.endswith('"'):
                word += " " + next(words)
        names.append(word.strip('"'))
        weights.append(float(next(words)))
    return names, weights


_STARTS = [
    "Bal",
    "Ben",
    "Ber",
    "Bor",
    "Bra",
    "Cal",
    "Car",
    "Cor",
    "Dal",
    "Dan",
    "Del",
    "Dor",
    "Ed",
    "El",
    "Fal",
    "Far",
    "Gal",
    "Gar",
    "Gor",
    "Had",
    "Hal",
    "Har",
    "Hol",
    "Jar",
    "Kar",
    "Kel",
    "Kor",
    "Lam",
    "Lan",
    "Lor",
    "Mal",
    "Mar",
    "Mor",
    "Nor",
    "Pal",
    "Par",
    "Pel",
    "Ran",
    "Ros",
    "Sal",
    "San",
    "Sel",
    "Sor",
    "Tal",
    "Tar",
    "Tor",
    "Val",
    "Var",
    "Wal",
    "Wil",
    "Zan",
]
_MIDDLES = ["", "a", "e", "i", "o", "ing", "er", "and", "en", "el"]
_ENDS = [
    "berg",
    "by",
    "der",
    "dorf",
    "field",
    "ford",
    "gate",
    "ham",
    "hart",
    "hurst",
    "ier",
    "kamp",
    "land",
    "ley",
    "low",
    "man",
    "mont",
    "more",
    "ner",
    "quist",
    "rell",
    "ritz",
    "sen",
    "son",
    "stad",
    "stein",
    "ton",
    "vale",
    "ville",
    "ward",
    "well",
    "wick",
    "win",
    "worth",
    "zer",
]


def _tail() -> Weighted:
    """The long tail, of which each name is rare and which together are half of everybody."""
    names = sorted({start + middle + end for start in _STARTS for middle in _MIDDLES for end in _ENDS})
    step = 7919  # a prime: so that the frequent ones are not those of one beginning
    mixed = [names[n * step % len(names)] for n in range(len(names))]
    return mixed, [250 / (n + 40) for n in range(len(mixed))]


_rare = _tail()
_common = _read(_FAMILIES)
_of_common, _of_rare = sum(_common[1]), sum(_rare[1])
# Of each people: family names, women's and men's names.
PEOPLES: dict[str, tuple[Weighted, Weighted, Weighted]] = {
    "wide": (
        (
            _common[0] + _rare[0],
            [*_common[1], *(weight * _of_common * 1.6 / _of_rare for weight in _rare[1])],
        ),
        _read(_WOMEN),
        _read(_MEN),
    ),
    "hispanic": (_read(_HISPANIC), _read(_HISPANIC_WOMEN), _read(_HISPANIC_MEN)),
    "asian": (_read(_ASIAN), _read(_ASIAN_WOMEN), _read(_ASIAN_MEN)),
}
